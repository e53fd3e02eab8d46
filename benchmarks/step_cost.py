"""Where a decoding step's time goes: operators of base and channel, and Python between the runs.

    python -m benchmarks.step_cost ENGINE... [--rows 1 8] [--tokens 48]

All on one thread, in its CPU time, so that other work on the machine shows less. An operator's time
is the least of its runs in ONNX Runtime's profile, which has no profiling in it but the clock's.
Python's share is what a generated token takes beside ONNX Runtime's run, of the whole.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# ONNX Runtime looks at it once, when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from benchmarks.graph_forms import bound, prefilled, step
from otter_export import ArgsGreedy, Plain, generate, load_engine
from otter_export.cli.table import table
from otter_export.evaluation.operator_shares import CHANNEL_MARKS
from otter_export.evaluation.step_bytes import stream_bandwidth, weight_bytes
from otter_export.runtime.executors.onnxruntime import open_session
from otter_export.runtime.methods.base import DecodingMethod

PROMPT = "I watched this film last night and"
PREFIX = 64
RUNS = 25
#: Products with weights; what is left is the cost of nodes.
PRODUCTS = ("MatMulNBits", "Gemm", "MatMul")
METHODS: Mapping[str, DecodingMethod] = {
    "plain": Plain(),
    "guided, k = 8, weight 1": ArgsGreedy(weight=1.0),
    "guided, k = 8, weight 4": ArgsGreedy(weight=4.0),
}


def operators(engine: Path, rows: int) -> list[tuple[str, ...]]:
    """Rows, part, nodes and least milliseconds of each part of a step of so many rows."""
    least: dict[str, tuple[float, str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(engine / "model.onnx", "cpu", 1, profile=Path(folder) / "p")
        feed = step(session, rows, prefilled(session, PREFIX))
        binding = bound(session, feed)
        for _ in range(RUNS):
            session.run_with_iobinding(binding)
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    begins = sorted(e["ts"] for e in events if e["name"] == "model_run")
    for event in events:
        if event["cat"] == "Node" and event["ts"] >= begins[-RUNS]:
            name, operator = event["name"], event["args"]["op_name"]
            least[name] = min(least.get(name, (float("inf"), operator)), (event["dur"], operator))
    spent, nodes = collections.Counter[str](), collections.Counter[str]()
    for name, (microseconds, operator) in least.items():
        part = _part(name, operator)
        spent[part] += int(microseconds)
        nodes[part] += 1
    return [
        (str(rows), part, str(nodes[part]), f"{spent[part] / 1e3:.1f}")
        for part in sorted(spent, key=lambda one: -spent[one])
    ]


def _part(name: str, operator: str) -> str:
    side = "channel" if any(mark in name for mark in CHANNEL_MARKS) else "base"
    if "from_base" in name:
        return "channel: A, reads the base"
    if operator in PRODUCTS:
        return f"{side}: other products"
    return f"{side}: everything else"


class TimedSession:
    """A session that adds up the CPU time of its runs."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.seconds: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, *arguments: Any) -> None:
        """Run, and take the time."""
        started = time.thread_time()
        self._session.run_with_iobinding(*arguments)
        self.seconds.append(time.thread_time() - started)


def between(directory: Path, tokens: int) -> list[tuple[str, ...]]:
    """Median milliseconds of a token by method, and Python's share of it."""
    engine: Any = load_engine(directory, threads=1)
    timed = engine._executor._session = TimedSession(engine._executor._session)
    rows: list[tuple[str, ...]] = []
    for name, method in METHODS.items():
        stamps: list[float] = []
        for _ in range(2):  # the first is a warm-up
            stamps.clear()
            generate(
                engine,
                PROMPT,
                method,
                max_tokens=tokens,
                on_event=lambda event: stamps.append(time.thread_time()),  # noqa: B023
            )
        whole = [after - before for before, after in itertools.pairwise(stamps)]
        outside = [a - b for a, b in zip(whole, timed.seconds[-len(whole) :], strict=True)]
        token, python = statistics.median(whole), statistics.median(outside)
        rows.append((name, f"{1e3 * token:.1f}", f"{python / token:.1%}"))
    return rows


def main() -> None:
    """Print two tables for each engine, and what reading its weights would take."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engines", nargs="+", type=Path)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    bandwidth = stream_bandwidth(1)
    for engine in options.engines:
        weights = weight_bytes(load_engine(engine, threads=1).manifest)
        floor = 1e3 * weights / bandwidth
        print(
            f"\n{engine.name}: {weights / 1e6:.0f} MB of weights at {bandwidth / 1e9:.1f} GB/s ",
            end="",
        )
        print(f"are {floor:.1f} ms\n")
        parts = [row for rows in options.rows for row in operators(engine, rows)]
        print(table(parts, ("rows", "part", "nodes", "ms")), end="\n\n")
        methods = between(engine, options.tokens)
        print(table(methods, ("a token", "ms", "of it Python")), flush=True)


if __name__ == "__main__":
    main()
