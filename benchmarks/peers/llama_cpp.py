"""A competitor's process: llama.cpp by llama-cpp-python, greedy decoding of a GGUF file."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import llama_cpp

from benchmarks.peers.answering import answer


def main() -> None:
    """Load the model and answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    threads = {"n_threads": options.threads, "n_threads_batch": options.threads}
    model = llama_cpp.Llama(options.model, n_ctx=1024, verbose=False, **threads)

    def generate(prompt: list[int], count: int) -> Iterator[int]:
        del count
        yield from model.generate(prompt, temp=0.0, repeat_penalty=1.0, reset=True)

    answer(llama_cpp.__version__, generate, options.threads)


if __name__ == "__main__":
    main()
