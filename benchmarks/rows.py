"""Rows of guided steps: how many could win, are fed, and are computed, 16 requests at a time.

    python -m benchmarks.rows [ENGINE] [--tokens 32]

Counts, not times: they are the same on every machine where the engine gives the same numbers.
*Could win* is what the reward's bounds leave; *fed* is what the runtime expects to win, repeated
steps included; *computed* has the padding of the batches as they are formed. The last two columns
replay the same steps in as many batches as are best if a pass costs as much as `PASS_ROWS` rows.
Writes rows.json and rows.md into benchmarks/results.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.record import REPOSITORY, Row, write
from examples.sentiment.prompts import PROMPTS
from otter_export import ArgsGreedy, Request, Result, TokenEvent, load_engine, stream
from otter_export.runtime.engine import Engine
from otter_export.runtime.scheduler import Limits, Scheduler

TOGETHER = 16
#: Of a pass on a CPU, beside its rows: 14 ms at 2.1 ms a row (int8, one thread).
PASS_ROWS = 7


@click.command()
@click.argument(
    "directory",
    type=click.Path(path_type=Path, exists=True),
    default=REPOSITORY / "build" / "demo" / "engine-int8",
)
@click.option("--top-k", default=8, show_default=True)
@click.option("--weight", "weights", multiple=True, type=float, default=(1.0, 2.0, 4.0))
@click.option("--tokens", default=32, show_default=True)
def main(directory: Path, top_k: int, weights: tuple[float, ...], tokens: int) -> None:
    """Count rows on the engine in DIRECTORY (default: the demo's)."""
    engine = load_engine(directory)
    rows: list[Row] = [
        {"weight": weight, **counted(engine, ArgsGreedy(top_k=top_k, weight=weight), tokens)}
        for weight in weights
    ]
    path = write("rows", rows, top_k=top_k, tokens=tokens, requests=TOGETHER)
    click.echo(path.with_suffix(".md").read_text(encoding="utf-8"))


def counted(engine: Engine, method: ArgsGreedy, tokens: int) -> dict[str, Any]:
    """Rows per token and passes per round of one method."""
    requests = [Request(prompt, method, max_tokens=tokens) for prompt in PROMPTS[:TOGETHER]]
    results: list[Result] = []
    scheduler = Scheduler(engine, Limits(max_batch_size=TOGETHER, prefill_tokens=1 << 16))
    for request in requests:
        scheduler.submit(
            request, on_event=lambda e: results.append(e) if isinstance(e, Result) else None
        )
    rounds: list[list[int]] = []
    formed: list[list[tuple[int, int]]] = []
    while True:
        # As the decoder does at the beginning of the step that follows.
        scheduler._decoder._regroup()
        batches = [b.sequences for b in scheduler._decoder._batches if b.sequences]
        if batches:
            widths = [[len(s.proposal.feed) for s in batch] for batch in batches]
            rounds.append([width for batch in widths for width in batch])
            formed.append([(len(batch), _width(engine, max(batch))) for batch in widths])
        if not scheduler.step():
            break
    # The first round feeds the prompts and decodes them too.
    made = sum(len(result.token_ids) - 1 for result in results)
    best = [_best_passes(engine, widths) for widths in rounds]
    return {
        "could win": _could_win(engine, method, tokens),
        "fed": sum(map(sum, rounds)) / made,
        "repeated": sum(r.forwards - len(r.token_ids) for r in results) / made,
        "computed": sum(b * w for passes in formed for b, w in passes) / made,
        "passes": float(np.mean([len(passes) for passes in formed])),
        "best: computed": sum(rows for rows, _ in best) / made,
        "best: passes": float(np.mean([passes for _, passes in best])),
    }


def _could_win(engine: Engine, method: ArgsGreedy, tokens: int) -> float:
    """Mean number of candidates within the bounds' reach of the best, by scoring all of them."""
    reach = 2 * abs(method.weight)
    whole = ArgsGreedy(top_k=method.top_k, weight=method.weight, prune=False)
    requests = [Request(prompt, whole, max_tokens=tokens) for prompt in PROMPTS[:TOGETHER]]
    counts = [
        sum(c.logit >= event.candidates[0].logit - reach for c in event.candidates)
        for event in stream(engine, requests, batch_size=TOGETHER)
        if isinstance(event, TokenEvent)
    ]
    return float(np.mean(counts))


def _best_passes(engine: Engine, widths: Sequence[int]) -> tuple[int, int]:
    """Rows and passes of the division into batches that costs least."""
    ordered = sorted(widths)
    best = [(0, 0, 0)]
    for end, width in enumerate(ordered, 1):
        best.append(
            min(
                (cost + more + PASS_ROWS, rows + more, passes + 1)
                for start, (cost, rows, passes) in enumerate(best)
                for more in [(end - start) * _width(engine, width)]
            )
        )
    return best[-1][1:]


def _width(engine: Engine, fed: int) -> int:
    """Tokens of a step that feeds so many candidates at most."""
    return fed + fed % 2 if engine.even_steps else fed


if __name__ == "__main__":
    main()
