"""Acceleration: a channel that guesses the tokens behind the next one, and what that is worth.

As in Medusa (Cai et al., arXiv 2401.10774), heads draft later tokens and the base checks them in
the same forward pass that it would have taken for the next token; the text stays the same. Here the
heads sit on a channel. Four of its initialisations are trained on what the base writes itself, and
timed against the same engine without drafts and against the base without a channel.

    make acceleration
    python -m examples.acceleration.demo --quick     # tiny sizes: shows that it runs, no more
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from benchmarks.baselines.onnx_files import write_base
from benchmarks.baselines.onnx_model import OnnxModel
from benchmarks.drafts import PROMPTS, Decoding, measure
from benchmarks.record import Row, table, write
from examples.acceleration import material, recipe
from examples.sentiment import material as sentiment
from examples.sentiment.demo import heading
from examples.sentiment.material import ROOT, atomically
from otter_export import load_engine
from otter_export.checkpoint import Checkpoint
from otter_export.runtime.drafts import NONE, draft_names

BUILD = ROOT / "build" / "acceleration"
#: The base without a channel, decoded by a loop over its graph.
BASE = "base alone"


@dataclasses.dataclass(frozen=True)
class Size:
    """How much is made and measured.

    Args:
        openings: Of each kind, to train on and to test on.
        training: How long.
        initializations: The first is measured in all ways, the others by their drafts alone.
        precisions: Of the engines; the other initialisations have the first alone.
        prompts: Of each kind, to time.
        tokens: Of each prompt.
        rounds: In which all ways take turns.
    """

    openings: Mapping[str, tuple[int, int]] = dataclasses.field(
        default_factory=lambda: material.FULL
    )
    training: Sequence[str] = recipe.FULL
    initializations: Sequence[str] = ("probe", "copy", "normal", "random")
    precisions: Sequence[str] = ("int8", "fp32")
    prompts: int = 4
    tokens: int = 32
    rounds: int = 2

    def engines(self, precision: str) -> Sequence[str]:
        """The initialisations that have an engine in a precision, the first one first."""
        return self.initializations[: None if precision == self.precisions[0] else 1]


FULL = Size()
QUICK = Size(material.QUICK, recipe.QUICK, ("probe",), ("int8",), 1, 8, 1)


@click.command()
@click.option("--quick", is_flag=True, help="Tiny sizes: shows that it runs, no more.")
@click.option("--threads", default=2, show_default=True, help="Of a step.")
@click.option("--out", type=click.Path(path_type=Path), help=f"[default: build/{BUILD.name}]")
def main(quick: bool, threads: int, out: Path | None) -> None:
    """Run the example; everything it makes lies under --out."""
    started, size = time.perf_counter(), QUICK if quick else FULL
    out = out or (BUILD / "quick" if quick else BUILD)  # neither takes the other's engines
    heading("1. Texts that the base writes behind openings of prose, code and repetitions")
    source = sentiment.prepare(report=click.echo)
    texts = material.prepare(source, out / "texts", size.openings, click.echo)
    heading("2. Channels that draft, begun in several ways and trained alike")
    reports = {
        init: recipe.make(source.base, texts, out / init, init, size.training)
        for init in size.initializations
    }
    accepted = acceptance(reports)
    click.echo(table(accepted))
    heading("3. Engines, and the base without a channel")
    build(out, size)
    heading("4. Speed, one prompt at a time")
    rows = [row for precision in size.precisions for row in speed(out, precision, threads, size)]
    path = write(
        "acceleration",
        rows,
        folder=out,
        acceptance=accepted,
        threads=threads,
        prompts=size.prompts,
        tokens=size.tokens,
        rounds=size.rounds,
        seconds=round(time.perf_counter() - started, 1),
    )
    click.echo(path.with_suffix(".md").read_text(encoding="utf-8"))
    click.echo(f"{path} holds every number; {time.perf_counter() - started:.0f} s")


def acceptance(reports: Mapping[str, Any]) -> list[Row]:
    """Share of test drafts that are right by domain and head, and of held-out ones untrained."""
    rows: list[Row] = []
    for init, report in reports.items():
        before, after = report["before"], report["results"]["test"]
        for name, share in after[report["metric"]].items():
            first = before[report["metric"]].get(name)
            rows.append({"begun as": init, "drafts": name, "untrained": first, "trained": share})
    return rows


def build(out: Path, size: Size) -> None:
    """Build ``INIT-PRECISION`` and ``base-PRECISION``; what is there stays."""
    for precision in size.precisions:
        for init in size.engines(precision):
            recipe.build(out / init, precision, out / f"{init}-{precision}")
        if not (destination := out / f"base-{precision}").is_dir():
            checkpoint = Checkpoint.open(out / size.initializations[0])
            atomically(destination, functools.partial(write_base, checkpoint, precision))


def speed(out: Path, precision: str, threads: int, size: Size) -> list[Row]:
    """By domain and way: tokens a pass, and the speed against the engine without drafts."""
    first, *others = size.engines(precision)
    engines = {
        init: load_engine(out / f"{init}-{precision}", threads=threads) for init in (first, *others)
    }
    base = OnnxModel(out / f"base-{precision}", threads, scalar=False)
    rows: list[Row] = []
    for kind, prompts in PROMPTS.items():
        decoding = functools.partial(
            Decoding, prompts=prompts[: size.prompts], tokens=size.tokens, clock=time.perf_counter
        )
        names = draft_names(engines[first].manifest)
        ways = {drafts: decoding(engines[first], drafts) for drafts in names}
        for init in others:
            ways[f"{recipe.SIGNAL}, begun as {init}"] = decoding(engines[init], recipe.SIGNAL)
        found = measure(ways, size.rounds, {BASE: alone(base, ways[NONE])})
        rows += [{"precision": precision, "text": kind, **row} for row in found]
    return rows


def alone(base: OnnxModel, plain: Decoding) -> Callable[[], float]:
    """Milliseconds a token of the base, which writes greedily what ``plain`` wrote before it."""

    def run() -> float:
        started = time.perf_counter()
        for result in plain.results:
            logits, cache = base.read(None, [result.prompt_ids])
            for _ in result.token_ids[1:]:
                logits, cache = base.read(cache, [[int(logits[0].argmax())]])
        tokens = sum(len(result.token_ids) for result in plain.results)
        return 1e3 * (time.perf_counter() - started) / tokens

    return run


if __name__ == "__main__":
    main()
