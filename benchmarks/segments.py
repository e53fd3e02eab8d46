"""Segments drawn anew (CARDS), best of n and ARGS: reward, what it costs, and the base's surprise.

    python -m benchmarks.segments [ENGINE] [--prompts 24] [--tokens 40] [--threads 1] [--quick]

Every prompt is continued by each way with several strengths, one prompt at a time, all by sampling
at one temperature from the same candidates. *Final* is the channel's reward of the whole text,
which best of n and the segments choose by, with the half of its 95 % interval; the other judges
know nothing of the channel (benchmarks/verdicts.py). Passes and rows are counted at the engine,
behind the prompt, rejected texts included, and divided by the tokens of the texts that are
returned; times come from rounds in which all ways take turns. A second table answers at equal
final reward: what best of n and ARGS would take there, on a line between the two strengths around
it. Writes segments.json and segments.md into benchmarks/results. With one thread CPU time is
counted instead of wall time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import click
import numpy as np

from benchmarks.record import REPOSITORY, Row, in_turns, write
from benchmarks.verdicts import verdicts
from examples.sentiment.prompts import PROMPTS
from otter_export import (
    ArgsStochastic,
    Plain,
    Request,
    Result,
    SegmentRejection,
    best_of,
    generate,
    load_engine,
    segment_rejection,
)
from otter_export.evaluation.written import Written
from otter_export.runtime.engine import Engine
from otter_export.runtime.segment_rejection import SegmentedResult

TOP_K, TEMPERATURE = 16, 0.8
PLAIN, BEST, SEGMENTS, ARGS = "plain", "best of", "segments", "args-stochastic"
#: Of each way, from weak to strong: texts, thresholds, weights.
COUNTS: tuple[int, ...] = (2, 4, 8, 16)
THRESHOLDS: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
WEIGHTS: tuple[float, ...] = (4.0, 8.0, 16.0, 32.0)
FINAL, PASSES, ROWS, TIME = "final", "passes a token", "rows a token", "ms a token"

#: Continues one request.
Way = Callable[[Engine, Request], Result]


class Counted:
    """An engine that counts what it is asked for.

    Attributes:
        passes: Forward passes.
        rows: Tokens that were fed in them.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.passes = self.rows = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def forward(self, cache: Any, input_ids: Any, *rest: Any) -> Any:
        """As the engine's."""
        self.passes += 1
        self.rows += input_ids.size
        return self._engine.forward(cache, input_ids, *rest)


@click.command()
@click.argument(
    "directory",
    type=click.Path(path_type=Path, exists=True),
    default=REPOSITORY / "build" / "demo" / "engine-int8",
)
@click.option("--entropy", default=3.0, show_default=True, help="Where segments end, in nats.")
@click.option("--beta", default=0.1, show_default=True, help="Of the segments.")
@click.option("--tries", default=20, show_default=True, help="Draws of a segment.")
@click.option("--at-a-time", default=4, show_default=True, help="Of them.")
@click.option("--prompts", "count", default=len(PROMPTS), show_default=True)
@click.option("--tokens", default=40, show_default=True)
@click.option("--rounds", default=1, show_default=True)
@click.option("--threads", type=int, help="[default: OMP_NUM_THREADS, else all cores]")
@click.option("--quick", is_flag=True, help="Two prompts, 8 tokens, two strengths, one round.")
@click.option("--name", default="segments", show_default=True, help="Of the files written.")
def main(
    directory: Path,
    count: int,
    tokens: int,
    rounds: int,
    threads: int | None,
    quick: bool,
    name: str,
    **options: Any,
) -> None:
    """Compare ways to a high reward on the engine in DIRECTORY (default: the demo's)."""
    if quick:
        count, tokens, rounds = 2, 8, 1
    engine = load_engine(directory, threads=threads)
    rows = measure(engine, ways(options, quick), PROMPTS[:count], tokens, rounds, threads)
    path = write(
        name,
        rows,
        libraries=("tokenizers", "vaderSentiment"),
        equal_reward=at_equal_reward(rows),
        prompts=count,
        tokens=tokens,
        rounds=rounds,
        threads=threads,
        top_k=TOP_K,
        temperature=TEMPERATURE,
        **options,
    )
    click.echo(path.with_suffix(".md").read_text(encoding="utf-8"))
    for row in at_equal_reward(rows):
        click.echo(", ".join(f"{key} {_short(value)}" for key, value in row.items()))


def ways(options: Mapping[str, Any], quick: bool = False) -> dict[tuple[str, float], Way]:
    """Each way by its name and strength; of strengths only those in the middle if it is quick."""
    some = slice(1, 3) if quick else slice(None)
    found: dict[tuple[str, float], Way] = {(PLAIN, 0.0): functools.partial(guide, 0.0)}
    found |= {(BEST, n): functools.partial(take_best, n) for n in COUNTS[some]}
    for threshold in THRESHOLDS[some]:
        rejection = SegmentRejection(threshold=threshold, **options)
        found[SEGMENTS, threshold] = functools.partial(reject, rejection)
    return found | {(ARGS, w): functools.partial(guide, w) for w in WEIGHTS[some]}


def take_best(count: int, engine: Engine, request: Request) -> Result:
    """The best of so many texts."""
    return best_of(engine, request, count)[0]


def reject(rejection: SegmentRejection, engine: Engine, request: Request) -> Result:
    """A text whose segments are drawn anew."""
    return segment_rejection(engine, request, rejection)


def guide(weight: float, engine: Engine, request: Request) -> Result:
    """A text whose tokens are guided; weight 0 is plain sampling."""
    method = ArgsStochastic(top_k=TOP_K, temperature=TEMPERATURE, weight=weight)
    return generate(engine, dataclasses.replace(request, method=method))[0]


def measure(
    engine: Engine,
    ways: Mapping[tuple[str, float], Way],
    prompts: Sequence[str],
    tokens: int,
    rounds: int,
    threads: int | None,
    judge: Callable[[Mapping[str, Written]], Mapping[str, Mapping[str, float]]] = verdicts,
) -> list[Row]:
    """A row for each way."""
    method = Plain(temperature=TEMPERATURE, top_k=TOP_K)
    requests = [Request(p, method, max_tokens=tokens, seed=i) for i, p in enumerate(prompts)]
    clock = time.process_time if threads == 1 else time.perf_counter
    written: dict[str, Written] = {}
    counts: dict[str, Counted] = {}

    def run(label: str, way: Way) -> float:
        counts[label] = Counted(engine)
        started = clock()
        results = tuple(way(cast(Engine, counts[label]), request) for request in requests)
        written[label] = Written(results, clock() - started)
        return 1e3 * written[label].seconds / written[label].tokens

    labels = {f"{name} {strength:g}": (name, strength) for name, strength in ways}
    runs = {label: functools.partial(run, label, ways[key]) for label, key in labels.items()}
    guide(0.0, engine, requests[0])  # the first steps of an engine take longer
    times = in_turns(runs, rounds=rounds, against=f"{PLAIN} 0", warmup=0)
    found = judge(written)
    rows: list[Row] = []
    for timed in times:
        label = timed["name"]
        name, strength = labels[label]
        results, size = written[label].results, written[label].tokens
        final = written[label].last_reward
        fed = counts[label].rows - sum(len(result.prompt_ids) for result in results)
        rows.append(
            {
                "way": name,
                "strength": strength,
                FINAL: float(final.mean()),
                "±": 1.96 * float(np.std(final)) / len(final) ** 0.5,
                **found[label],
                PASSES: (counts[label].passes - len(results)) / size,
                ROWS: fed / size,
                TIME: timed["median"],
                "time / plain": timed["ratio"],
                **_draws(results),
            }
        )
    return rows


def _draws(results: Sequence[Result]) -> dict[str, float]:
    """How often a segment was drawn, and how many were accepted in the end."""
    segments = [s for r in results if isinstance(r, SegmentedResult) for s in r.segments]
    if not segments:
        return {}
    return {
        "tokens a segment": statistics.mean(s.tokens for s in segments),
        "draws a segment": statistics.mean(s.tries for s in segments),
        "accepted": statistics.mean(s.accepted for s in segments),
    }


def at_equal_reward(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each threshold what the other ways cost at the same final reward; None: out of reach."""
    table = []
    for row in (row for row in rows if row["way"] == SEGMENTS):
        costs: dict[str, Any] = {"threshold": row["strength"], FINAL: row[FINAL]}
        for cost in (PASSES, ROWS, TIME):
            costs[f"{SEGMENTS}: {cost}"] = row[cost]
            for way in (BEST, ARGS):
                own = sorted((r[FINAL], r[cost]) for r in rows if r["way"] in (way, PLAIN))
                rewards, spent = zip(*own, strict=True)
                reached = rewards[0] <= row[FINAL] <= rewards[-1]
                between = float(np.interp(row[FINAL], rewards, spent)) if reached else None
                costs[f"{way}: {cost}"] = between
        table.append(costs)
    return table


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    main()
