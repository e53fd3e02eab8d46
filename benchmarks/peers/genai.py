"""A competitor's process: onnxruntime-genai, greedy decoding of a directory of its own builder."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

# ONNX Runtime looks at it once, when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime_genai

from benchmarks.peers.answering import answer


def main() -> None:
    """Load the model and answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    config = onnxruntime_genai.Config(options.model)
    session = f'{{"intra_op_num_threads": {options.threads}}}'
    config.overlay(f'{{"model": {{"decoder": {{"session_options": {session}}}}}}}')
    model = onnxruntime_genai.Model(config)

    def generate(prompt: list[int], count: int) -> Iterator[int]:
        parameters = onnxruntime_genai.GeneratorParams(model)
        end = len(prompt) + count
        # min_length keeps it from ending early.
        parameters.set_search_options(do_sample=False, max_length=end, min_length=end)
        generator = onnxruntime_genai.Generator(model, parameters)
        generator.append_tokens(prompt)
        while not generator.is_done():
            generator.generate_next_token()
            yield generator.get_next_tokens()[0]

    answer(onnxruntime_genai.__version__, generate, options.threads)


if __name__ == "__main__":
    main()
