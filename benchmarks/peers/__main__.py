"""This engine against its peers and against the literature: one command, three tables.

    python -m benchmarks.peers [speed] [time] [space] [--rounds 9] [--tokens 32] ...

- ``speed``: plain decoding in onnxruntime-genai, llama.cpp and transformers; plain decoding here
  with the reward alongside, and guided (benchmarks/results/peers_speed.*).
- ``time``: the extra time of methods with a separate reward model, and of a channel
  (peers_time.*).
- ``space``: what each takes beside the base, on the disk and in memory (peers_space.*).

Every competitor is a process; they take turns on the same prompts. A peer may have an environment
of its own (--genai-python VENV/bin/python); one that is not there is left out, with the line that
installs it. docs/performance.md says what is compared, and how.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.peers import space_saved, speed, time_saved
from benchmarks.peers.contest import Prompts, Setting
from benchmarks.peers.material import MODELS, REAL, Files
from examples.sentiment.prompts import PROMPTS
from otter_export.runtime.tokenizer import JsonTokenizer

TABLES = ("speed", "time", "space")
PRECISIONS = ("int8", "int4", "fp32")
#: Where extra time is compared: in transformers, and on our kernels in these precisions.
LIBRARIES = ("transformers", "fp32", "int8")
#: Five copies of the largest, 4.4 GB each in float32, are more than many machines have.
TOO_LARGE = (("Llama-1.1B", "fp32"),)
CACHE = Path(os.environ.get("OTTER_EXPORT_CACHE", record.REPOSITORY / ".cache")) / "peers"
#: Texts that `time` measures at a given length; each costs 128 tokens of plain decoding before.
TEXTS = 3


def main() -> None:
    """Measure what is asked for."""
    options = arguments()
    found = {
        "onnxruntime_genai": speed.version_of(options.genai_python, "onnxruntime_genai", print),
        "llama_cpp": speed.version_of(options.llama_cpp_python, "llama_cpp", print),
    }
    setting = Setting(
        rounds=options.rounds,
        tokens=options.tokens,
        threads=options.threads,
        # Not resolved: an environment's interpreter is a link to one outside of it.
        genai=options.genai_python.absolute(),
        llama_cpp=options.llama_cpp_python.absolute(),
        peers={module: version for module, version in found.items() if version is not None},
    )
    files = {model: Files(model, CACHE / model) for model in options.models}
    try:
        for table in options.tables or TABLES:
            MEASURES[table](files, options, setting)
    finally:
        if options.delete:
            for one in files.values():
                one.delete()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    cores = len(os.sched_getaffinity(0))
    parser.add_argument("tables", nargs="*", help=f"Of {', '.join(TABLES)}; all unless named.")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=LIBRARIES)
    parser.add_argument("--rounds", type=int, default=9, help="How often each is counted.")
    parser.add_argument("--tokens", type=int, default=32, help="Generated each time.")
    parser.add_argument("--time-tokens", type=int, default=6, help="The same, of `time`.")
    parser.add_argument("--threads", type=int, default=cores)
    parser.add_argument("--genai-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--llama-cpp-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--delete", action="store_true", help="Remove models and engines after it.")
    options = parser.parse_args()
    if unknown := set(options.tables) - set(TABLES):
        parser.error(f"no table {', '.join(sorted(unknown))}; there are {', '.join(TABLES)}")
    return options


def measure_speed(
    files: Mapping[str, Files], options: argparse.Namespace, setting: Setting
) -> None:
    """Every model in every precision."""
    prompts = real_prompts()
    cells = [(m, p) for m in files for p in options.precisions if (m, p) not in TOO_LARGE]
    rows = (speed.speed(files[m], p, prompts, setting) for m, p in cells)
    keep("peers_speed", rows, setting, speed.draw)


def measure_time(files: Mapping[str, Files], options: argparse.Namespace, setting: Setting) -> None:
    """The real model in every library: a published method takes a second a token."""
    brief = dataclasses.replace(setting, tokens=options.time_tokens)
    prompts = real_prompts()[:TEXTS]
    real = files.get(REAL, Files(REAL, CACHE / REAL))
    rows = (time_saved.time_saved(real, library, prompts, brief) for library in options.libraries)
    keep("peers_time", rows, setting, time_saved.draw)


def measure_space(
    files: Mapping[str, Files], options: argparse.Namespace, setting: Setting
) -> None:
    """Every model in every precision."""
    cells = [(m, p) for m in files for p in options.precisions if (m, p) not in TOO_LARGE]
    prompt = real_prompts()[0]
    rows = (space_saved.space_saved(files[m], p, prompt, setting) for m, p in cells)
    keep("peers_space", rows, setting)


MEASURES = {"speed": measure_speed, "time": measure_time, "space": measure_space}


def real_prompts() -> Prompts:
    """The demo's prompts, as tokens of SmolLM2; the random Llamas have its tokenizer."""
    tokenizer = JsonTokenizer(Files(REAL, CACHE / REAL).base() / "tokenizer.json")
    return [tokenizer.encode(prompt) for prompt in PROMPTS]


def keep(
    name: str,
    cells: Iterable[Iterable[Mapping[str, Any]]],
    setting: Setting,
    draw: Callable[[Sequence[Mapping[str, Any]]], Any] | None = None,
) -> None:
    """Write a record after every cell, so that a run that ends early has measured something."""
    rows: list[Mapping[str, Any]] = []
    for cell in cells:
        new = list(cell)
        rows += new
        print(record.table(new), flush=True)
        figure = None if draw is None else draw(rows)
        libraries = ("transformers", "torch")
        record.write(name, rows, libraries=libraries, versions=setting.peers, figure=figure)


if __name__ == "__main__":
    main()
