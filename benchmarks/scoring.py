"""Scoring texts beside a plain prefill of the same texts: tokens a second, ratios in one run.

    python -m benchmarks.scoring [ENGINE] [--texts 2000] [--threads 1] [--quick]

The texts are the demo's training snippets. *Prefill* feeds them through the same scheduler and
takes one row of each, as before generation; *score* takes the rows of all tokens; *alone* scores
one text at a time. Times are CPU time with one thread, else wall time. Then 8 prompts are
continued, and the rewards that were reported for the tokens are compared with their scores. Writes
scoring.json and scoring.md into benchmarks/results.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks import record
from examples.sentiment.material import prepare
from examples.sentiment.prompts import PROMPTS
from otter_export import ArgsGreedy, Request, generate, load_engine, score, stream
from otter_export.runtime.engine import Engine
from otter_export.runtime.scoring import BATCH_SIZE

QUICK = {"texts": 24, "rounds": 1, "tokens": 8}


@click.command()
@click.argument(
    "directory",
    type=click.Path(path_type=Path, exists=True),
    default=record.REPOSITORY / "build" / "demo" / "engine-int8",
)
@click.option("--texts", "count", default=2000, show_default=True)
@click.option("--tokens", default=40, show_default=True, help="Generated behind each prompt.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", type=int, help="[default: OMP_NUM_THREADS, else all cores]")
@click.option("--quick", is_flag=True, help="Whether it runs at all; writes no record.")
def main(
    directory: Path, count: int, tokens: int, rounds: int, threads: int | None, quick: bool
) -> None:
    """Time the engine in DIRECTORY (default: the demo's)."""
    if quick:
        count, rounds, tokens = QUICK["texts"], QUICK["rounds"], QUICK["tokens"]
    engine = load_engine(directory, threads=threads)
    lines = prepare(report=click.echo).train.read_text(encoding="utf-8").splitlines()[:count]
    texts = [json.loads(line)["text"] for line in lines]
    clock = time.process_time if threads == 1 else time.perf_counter
    rows = speeds(engine, texts, rounds, clock)
    difference = largest_difference(engine, PROMPTS[:8], tokens)
    if not quick:
        record.write(
            "scoring",
            rows,
            texts=len(texts),
            rounds=rounds,
            threads=threads,
            engine=directory.name,
            difference_from_generate=difference,
        )
    click.echo(record.table(rows), nl=False)
    click.echo(f"largest difference from the rewards of generate: {difference:.1e}")


def speeds(
    engine: Engine, texts: Sequence[str], rounds: int, clock: Callable[[], float]
) -> list[record.Row]:
    """Tokens a second of each way, and its time over that of a prefill."""
    ids = [engine.tokenizer.encode(text) for text in texts]
    total = sum(map(len, ids))
    # A prompt whose rewards begin behind its end: nothing is generated, and no row but the last
    # comes out.
    plain = [Request(one, ArgsGreedy(top_k=1), 0, rewards_from=len(one)) for one in ids]

    def timed(work: Callable[[], Any]) -> Callable[[], float]:
        def run() -> float:
            started = clock()
            work()
            return 1e3 * (clock() - started) / total

        return run

    runs = {
        "prefill": timed(lambda: list(stream(engine, plain, batch_size=BATCH_SIZE))),
        "score": timed(lambda: list(score(engine, ids))),
        "alone": timed(lambda: list(score(engine, ids, batch_size=1))),
    }
    found = record.in_turns(runs, rounds=rounds, against="prefill")
    return [
        {
            "": row["name"],
            "tokens/s": 1e3 / row["median"],
            "ms a token": row["median"],
            "time / prefill": row["ratio"],
        }
        for row in found
    ]


def largest_difference(engine: Engine, prompts: Sequence[str], tokens: int) -> float:
    """Between rewards of generated tokens and the scores of the same tokens, by signals' names."""
    largest = 0.0
    results = generate(engine, prompts, ArgsGreedy(), max_tokens=tokens)
    pairs = [(result.prompt_ids, result.token_ids) for result in results]
    names = [signal.name for signal in engine.manifest.signals if signal.kind == "value"][:1]
    for result, scored in zip(results, score(engine, pairs, signals=names or None), strict=True):
        for one, other in zip(result.rewards, scored.rewards, strict=True):
            if other is not None:
                largest = max(largest, abs(one - other))
    return largest


if __name__ == "__main__":
    main()
