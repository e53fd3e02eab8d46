"""What guidance costs: time for a token of one continuation, and bytes on the disk.

Everything runs on one thread and keeps its KV caches. "Extra" is what a way to decode takes beyond
the base alone.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.baselines.model import Model
from benchmarks.record import in_turns
from examples.detoxification.baseline import decode
from otter_export import stream
from otter_export.runtime.engine import Engine
from otter_export.runtime.methods.base import DecodingMethod
from otter_export.runtime.request import Request

#: Timed in a run.
TOKENS = 32


def of_models(
    models: Sequence[Model], prompt: Sequence[int], weight: float, top_p: float
) -> Callable[[], float]:
    """CPU milliseconds a token of `baseline.decode`; see `times`."""

    def run() -> float:
        generators = [np.random.default_rng(0)]
        return _milliseconds(
            decode(models, prompt, weight=weight, top_p=top_p, generators=generators)
        )

    return run


def of_engine(engine: Engine, prompt: str, method: DecodingMethod) -> Callable[[], float]:
    """The same of an engine, through the library's own loop."""
    return lambda: _milliseconds(stream(engine, Request(prompt, method, TOKENS + 1, (), 0)))


def times(runs: Mapping[str, Callable[[], float]], plain: str, rounds: int) -> dict[str, Any]:
    """By name: milliseconds a token and what it takes beyond ``plain``, as a share of plain.

    Args:
        runs: Each decodes once and returns milliseconds a token.
        plain: The name of the base alone.
        rounds: In turns; ratios are medians of ratios within a round.
    """
    rows = in_turns(runs, rounds=rounds, against=plain)
    return {r["name"]: {"ms": r["median"], "extra": r["ratio"] - 1} for r in rows}


def model_bytes(directory: Path) -> int:
    """Of graph and weights; a tokenizer belongs to the base in any case."""
    files = (*directory.glob("model.onnx*"), *directory.glob("*.safetensors"))
    return sum(path.stat().st_size for path in files)


def table(found: Mapping[str, Any], extra_bytes: Mapping[str, int]) -> str:
    """A line for each way to decode."""
    lines = [f"{'':12} {'ms a token':>10} {'extra time':>10} {'extra MB':>9}"]
    for name, row in found.items():
        lines.append(
            f"{name:12} {row['ms']:10.1f} {row['extra']:10.2f} {extra_bytes[name] / 1e6:9.1f}"
        )
    return "\n".join(lines)


def _milliseconds(steps: Iterator[Any]) -> float:
    """CPU time of each step behind the first, which reads the prompt."""
    next(steps)
    started = time.process_time()
    done = sum(1 for _ in itertools.islice(steps, TOKENS))
    return 1e3 * (time.process_time() - started) / done
