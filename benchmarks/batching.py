"""Requests decoded together against one at a time: ratios in one run.

    python benchmarks/batching.py ENGINE [--requests 16] [--tokens 24] [--threads 1] [--json]

For each way of decoding, the requests go through a scheduler with a place for all; four of
them also through one with a single place. The runs take turns, and the least of the repeats counts.
The last column is what the arithmetic allows: the same ratio for bare forward passes of the same
width, without prompts and without anything in Python. With one thread, CPU time is counted instead
of wall time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np

from otter_export import ArgsGreedy, Plain, Request, Result, load_engine
from otter_export.runtime.engine import Engine
from otter_export.runtime.methods.base import DecodingMethod
from otter_export.runtime.scheduler import Limits, Scheduler

PROMPTS = (
    "The movie was",
    "I watched this film last night and",
    "The best thing about this place is",
    "My new phone",
)
#: Tells the seconds.
Clock = Callable[[], float]
#: Requests that are also decoded one at a time: each prompt once, each method as often as another.
ALONE = 4
GUIDED = ArgsGreedy(top_k=8, weight=4.0)
#: Name, methods in turn, and tokens fed per step at most.
WORKLOADS: tuple[tuple[str, tuple[DecodingMethod, ...], int], ...] = (
    ("plain", (Plain(),), 1),
    ("sampled", (Plain(temperature=0.8, top_p=0.95),), 1),
    ("guided k=8 w=4", (GUIDED,), 8),
    ("guided k=8 w=1", (ArgsGreedy(top_k=8, weight=1.0),), 8),
    ("half guided", (GUIDED, Plain()), 8),
)


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True))
@click.option("--requests", "count", default=16, show_default=True)
@click.option("--tokens", default=24, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--threads", type=int, help="[default: OMP_NUM_THREADS, else all cores]")
@click.option("--only", help="The workload of this name alone.")
@click.option("--json", "as_json", is_flag=True)
def main(
    directory: Path,
    count: int,
    tokens: int,
    repeats: int,
    threads: int | None,
    only: str | None,
    as_json: bool,
) -> None:
    """Time COUNT requests on the engine in DIRECTORY, together and one at a time."""
    engine = load_engine(directory, threads=threads)
    clock = time.process_time if threads == 1 else time.perf_counter
    rows: dict[str, dict[str, float]] = {}
    for name, methods, width in WORKLOADS:
        if only not in (None, name):
            continue
        made = requests(methods, count, tokens)
        best = fastest(
            {
                "together": lambda made=made: decode(engine, made, count, clock),  # type: ignore[misc]
                "alone": lambda made=made: decode(engine, made[:ALONE], 1, clock),  # type: ignore[misc]
                "pass": lambda w=width: forward(engine, count, w, clock),  # type: ignore[misc]
                "single pass": lambda w=width: forward(engine, 1, w, clock),  # type: ignore[misc]
            },
            repeats,
        )
        rows[name] = {
            "together ms/token": 1e3 * best["together"],
            "alone ms/token": 1e3 * best["alone"],
            "ratio": best["alone"] / best["together"],
            "bare passes": count * best["single pass"] / best["pass"],
        }
    if as_json:
        click.echo(json.dumps(rows))
        return
    columns = ("together ms/token", "alone ms/token", "ratio", "bare passes")
    click.echo(f"{count} requests".ljust(16) + "".join(f"{c:>19}" for c in columns))
    for name, row in rows.items():
        click.echo(f"{name:16}" + "".join(f"{row[c]:19.2f}" for c in columns))


def requests(methods: tuple[DecodingMethod, ...], count: int, tokens: int) -> list[Request]:
    """Requests with different prompts, seeds and, where there are several, methods."""
    return [
        Request(PROMPTS[i % len(PROMPTS)], methods[i % len(methods)], max_tokens=tokens, seed=i)
        for i in range(count)
    ]


def fastest(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """The least of the repeats of each run, which take turns."""
    best = {name: float("inf") for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            best[name] = min(best[name], run())
    return best


def decode(engine: Engine, made: list[Request], places: int, clock: Clock) -> float:
    """Seconds per generated token, prompts included."""
    scheduler = Scheduler(engine, Limits(max_batch_size=places))
    results: list[Result] = []

    def take(event: object) -> None:
        if isinstance(event, Result):
            results.append(event)

    started = clock()
    for request in made:
        scheduler.submit(request, on_event=take)
    while scheduler.step():
        pass
    seconds = clock() - started
    return seconds / sum(len(result.token_ids) for result in results)


def forward(engine: Engine, batch: int, width: int, clock: Clock, prefix: int = 24) -> float:
    """Seconds of one forward pass of ``width`` tokens each, behind ``prefix`` tokens; best of 3."""
    cache = engine.new_cache(batch)
    causal = np.broadcast_to(np.tri(prefix, dtype=np.bool_), (batch, prefix, prefix))
    ids = np.ones((batch, prefix), np.int64)
    step = engine.forward(cache, ids, np.tile(np.arange(prefix), (batch, 1)), causal, 1)
    engine.commit(cache, step, [range(prefix)] * batch)
    tree = np.broadcast_to(np.eye(width, dtype=np.bool_), (batch, width, width))
    inputs = np.ones((batch, width), np.int64), np.full((batch, width), prefix), tree
    best = float("inf")
    for _ in range(3):
        started = clock()
        engine.forward(cache, *inputs, width)
        best = min(best, clock() - started)
    return best


if __name__ == "__main__":
    main()
