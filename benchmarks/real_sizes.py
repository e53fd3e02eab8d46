"""Seconds and memory of insert, build and verify on public sizes, with random weights.

Usage: python -m benchmarks.real_sizes [--models Llama-3.2-1B ...] [--layers 2]

The config.json is the public one with fewer layers; width, heads and vocabulary are those of the
model. Each step is a process of its own, whose largest resident size is taken. Files that are
mapped count in it, although the system takes their pages back when it needs them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks import record
from benchmarks.random_weights import write_random_weights
from tests import tiny
from tests.families.hub_configs import PUBLIC

#: With the layers that are built: in Gemma 3, the sixth is the first without a window.
LAYERS = {"Llama-3.2-1B": 2, "Gemma-3-1b": 6}
#: Words of `tests.tiny.write_tokenizer`: the built-in prompts would be unknown tokens alone.
WORDS = 128
PROMPTS = tuple(
    " ".join(f"w{3 + (7 * i + 5 * j) % 120}" for j in range(n)) for i, n in enumerate((6, 17, 40))
)
_LIBRARIES = ("mobius-onnx", "torch", "transformers")


@dataclasses.dataclass(frozen=True)
class Step:
    """One command.

    Args:
        step: Its name.
        seconds: How long it took.
        cpu_seconds: CPU time of its process, which other work on the machine disturbs less.
        peak_bytes: The largest resident size of its process.
    """

    step: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def write_base(name: str, layers: int, directory: Path) -> Path:
    """A base of a public model's sizes, with random bfloat16 weights."""
    config = {**PUBLIC[name].config, "num_hidden_layers": layers}
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps(config))
    tiny.write_tokenizer(directory, WORDS)
    write_random_weights(directory)
    return directory


def run(name: str, *arguments: object) -> Step:
    """Run one command of otter-export.

    Raises:
        subprocess.CalledProcessError: It failed.
    """
    command = [sys.executable, "-m", "otter_export", *map(str, arguments)]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    shown = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, shown)
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Step(name, round(seconds, 1), round(usage.ru_utime + usage.ru_stime, 1), peak)


def measure(base: Path, directory: Path) -> Iterator[Step]:
    """Insert a channel into a base, build the engine in int8, verify it."""
    checkpoint, engine = directory / "ckpt", directory / "engine"
    # Long rotary tables are no part of the weights; an engine of the demo's length has few rows.
    length = ("--max-seq-len", 2048)
    yield run("insert", "insert", base, checkpoint)
    yield run("build int8", "build", checkpoint, engine, "--precision", "int8", *length)
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    yield run("verify --quick", "verify", engine, "--quick", *prompts)


def rows_of(layers: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    """All steps of all models."""
    for name, count in layers.items():
        with tempfile.TemporaryDirectory() as folder:
            base = write_base(name, count, Path(folder, "base"))
            size = (base / "model.safetensors").stat().st_size
            for step in measure(base, Path(folder)):
                shown = f"{step.seconds} s, {step.cpu_seconds} s of CPU"
                print(f"{name}, {step.step}: {shown}, {step.peak_bytes / 1e9:.2f} GB", flush=True)
                yield {
                    "model": name,
                    "layers": count,
                    "base_bytes": size,
                    **dataclasses.asdict(step),
                }


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=list(PUBLIC), default=list(LAYERS))
    parser.add_argument("--layers", type=int, help="Of every model; see LAYERS.")
    options = parser.parse_args()
    layers = {name: options.layers or LAYERS.get(name, 2) for name in options.models}
    record.write("real_sizes", list(rows_of(layers)), libraries=_LIBRARIES)


if __name__ == "__main__":
    main()
