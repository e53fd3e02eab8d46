"""A competitor's process: a method of `benchmarks.baselines`, on transformers or our kernels."""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.baselines.args import args
from benchmarks.baselines.args_cached import args_cached
from benchmarks.baselines.model import Model
from benchmarks.baselines.pargs import pargs
from benchmarks.baselines.plain import plain
from benchmarks.baselines.q_style import q_style
from benchmarks.baselines.rad import rad
from benchmarks.peers.answering import answer
from otter_export.runtime.tokenizer import JsonTokenizer

#: A version, and what loads ``base``, ``reward`` (one score) or ``q_reward`` (one a next token).
Library = tuple[str, Callable[[str], Model]]
METHODS: dict[str, Callable[..., Iterator[int]]] = {
    "args": args,
    "args_cached": args_cached,
    "rad": rad,
    "pargs": pargs,
    "q_style": q_style,
}


def main() -> None:
    """Load base and reward model, each when it is first needed, and answer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", choices=list(LIBRARIES))
    parser.add_argument("directory", type=Path, help="A base; or graphs in base/ and reward/.")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    version, make = LIBRARIES[options.library](options.directory, options.threads)
    load = functools.cache(make)
    tokenizer = functools.cache(lambda: JsonTokenizer(options.directory / "tokenizer.json"))

    def generate(prompt: list[int], count: int, method: str, **chosen: Any) -> Iterator[int]:
        del count
        base = load("base")
        # For its memory, 40 MB: whoever serves has one. Our engines read theirs here, too.
        tokenizer()
        if method == "plain":
            return plain(base, prompt)
        reward = load("q_reward" if method == "q_style" else "reward")
        return METHODS[method](base, reward, prompt, **chosen)

    answer(version, generate, options.threads)


def onnx(directory: Path, threads: int) -> Library:
    """Graphs of `benchmarks.baselines.onnx_files`."""
    from benchmarks.baselines.onnx_model import OnnxModel

    def load(role: str) -> Model:
        # A reward model of all next tokens has the base's own shape, head and all.
        folder = "base" if role == "q_reward" else role
        return OnnxModel(directory / folder, threads, scalar=role == "reward")

    return f"onnxruntime {importlib.metadata.version('onnxruntime')}", load


def transformers(directory: Path, threads: int) -> Library:
    """A base directory in float32, loaded once for each role, as separate models are."""
    import torch
    from transformers import AutoModelForCausalLM, __version__

    from benchmarks.baselines.torch_model import language_model, reward_model

    torch.set_num_threads(threads)
    make = {"base": language_model, "q_reward": language_model, "reward": reward_model}

    def load(role: str) -> Model:
        model: Any = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
        model.eval()
        return make[role](model)

    return f"transformers {__version__}, torch {torch.__version__}", load


LIBRARIES = {"onnx": onnx, "transformers": transformers}


if __name__ == "__main__":
    main()
