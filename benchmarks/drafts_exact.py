"""Drafts: whether the tokens are those without them, on a real engine.

    python -m benchmarks.drafts_exact ENGINE [--prompts 200] [--tokens 24] [--threads 1]

Openings of movie snippets are continued by methods whose choice needs one row: greedy, sampled with
a seed of its own for each prompt, and guided by a ``q_value`` or ``expert`` signal, if the engine
has one. Each runs without drafts, 8 prompts at a time, and then with every drafter of the engine,
alone and 8 at a time. *Same* counts the prompts whose tokens are all the same; a prompt that
differs is told with the place. Writes drafts_exact.json and drafts_exact.md into
benchmarks/results; exit status 1 if a token differs.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from benchmarks.record import Row, write
from examples.acceleration.material import prose
from examples.sentiment.material import prepare
from otter_export import ArgsGreedy, Plain, Request, Result, generate, load_engine
from otter_export.manifest import EngineManifest
from otter_export.runtime.drafts import NONE, draft_names
from otter_export.runtime.engine import Engine
from otter_export.runtime.methods.base import DecodingMethod
from otter_export.runtime.methods.experts import Experts

#: Prompts that decode together.
CROWD = 8


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True))
@click.option("--prompts", "count", default=200, show_default=True)
@click.option("--tokens", default=24, show_default=True)
@click.option("--weight", default=2.0, show_default=True, help="Of the guided method.")
@click.option("--threads", type=int, help="[default: OMP_NUM_THREADS, else all cores]")
@click.option("--drafts", "chosen", multiple=True, help="[default: all of the engine]")
@click.option("--name", default="drafts_exact", show_default=True, help="Of the files.")
def main(
    directory: Path,
    count: int,
    tokens: int,
    weight: float,
    threads: int | None,
    chosen: tuple[str, ...],
    name: str,
) -> None:
    """Compare tokens on the engine in DIRECTORY."""
    engine = load_engine(directory, threads=threads)
    drafters = chosen or tuple(n for n in draft_names(engine.manifest) if n != NONE)
    prompts = list(itertools.islice(prose(prepare().test), count))
    rows: list[Row] = []
    for method, options in methods(engine.manifest, weight).items():
        for row in compared(engine, prompts, options, drafters, tokens):
            rows.append({"method": method, **row})
            click.echo(json.dumps(rows[-1]), err=True)
    path = write(
        name,
        rows,
        engine=directory.name,
        chains_alike=engine.chains_alike,
        prompts=len(prompts),
        tokens=tokens,
        crowd=CROWD,
        threads=threads,
    )
    click.echo(path.with_suffix(".md").read_text(encoding="utf-8"))
    sys.exit(any(row["differs"] for row in rows))


def methods(manifest: EngineManifest, weight: float) -> dict[str, DecodingMethod]:
    """The row-local methods of an engine, by name."""
    found: dict[str, DecodingMethod] = {"greedy": Plain(), "sampled": Plain(temperature=0.8)}
    for signal in manifest.signals:
        if signal.kind == "q_value":
            found[f"guided by {signal.name}"] = ArgsGreedy(weight=weight, signal=signal.name)
        if signal.kind == "expert":
            found[f"experts {signal.name}"] = Experts(weight=weight, signal=signal.name)
    return found


def compared(
    engine: Engine,
    prompts: Sequence[str],
    method: DecodingMethod,
    drafters: Sequence[str],
    tokens: int,
) -> Iterator[Row]:
    """A row for each drafter, alone and in a crowd."""

    def run(drafts: str, together: int) -> list[Result]:
        requests = [
            Request(prompt, method, tokens, seed=seed, drafts=drafts)
            for seed, prompt in enumerate(prompts)
        ]
        return generate(engine, requests, batch_size=together)

    plain = [result.token_ids for result in run(NONE, CROWD)]
    for drafts, together in itertools.product(drafters, (1, CROWD)):
        started = time.process_time()
        results = run(drafts, together)
        found = [result.token_ids for result in results]
        differs = [
            {"prompt": i, "place": _first_difference(a, b)}
            for i, (a, b) in enumerate(zip(plain, found, strict=True))
            if a != b
        ]
        yield {
            "drafts": drafts,
            "together": together,
            "same": f"{len(plain) - len(differs)} of {len(plain)}",
            "accepted": sum(result.accepted or 0 for result in results),
            "drafted": sum(result.drafted or 0 for result in results),
            "cpu s": time.process_time() - started,
            "differs": differs,
        }


def _first_difference(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = enumerate(itertools.zip_longest(one, other))
    return next(i for i, (a, b) in pairs if a != b)


if __name__ == "__main__":
    main()
