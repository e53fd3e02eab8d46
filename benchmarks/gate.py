"""The gate: reward kept against speed gained, on the demo's prompts and judges.

    python -m benchmarks.gate [ENGINE] [--weight 16] [--tokens 40] [--rounds 3]

Every prompt is continued without rewards, with rewards at every token, and behind gates of rising
height. What comes out is judged by the channel's own reward, by VADER's lexicon and by a ridge
probe that the channel never saw (examples/sentiment/judges.py); *kept* is the share of what full
guidance gains over none. Speed is counted in rounds in which all ways take turns, one prompt at a
time and sixteen together, and divided by plain decoding's of the same round. Writes gate.json,
gate.md and gate.png into benchmarks/results. With one thread CPU time is counted instead of wall
time, which other work on the machine disturbs less.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.record import REPOSITORY, Row, in_turns, write
from benchmarks.verdicts import JUDGES, verdicts
from examples.sentiment.comparison import TEMPERATURE
from examples.sentiment.prompts import PROMPTS
from otter_export import ArgsGreedy, ArgsStochastic, Plain, Request, load_engine
from otter_export.evaluation import written
from otter_export.evaluation.written import Written
from otter_export.runtime.engine import Engine
from otter_export.runtime.methods.base import DecodingMethod

#: Nats; half of this model's steps are above 3.
GATES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0)
TOGETHER = 16
#: Prompts that are timed one at a time, and tokens of each that is timed.
ALONE, TIMED_TOKENS = 3, 16
PLAIN = "plain"


@dataclasses.dataclass(frozen=True)
class Gated(Written):
    """What one way of decoding wrote.

    Args:
        gated: Share of the tokens whose gate was closed.
    """

    gated: float


@click.command()
@click.argument(
    "directory",
    type=click.Path(path_type=Path, exists=True),
    default=REPOSITORY / "build" / "demo" / "engine-int8",
)
@click.option("--method", type=click.Choice(["args-stochastic", "args-greedy"]))
@click.option("--weight", default=16.0, show_default=True, help="Of the reward.")
@click.option("--top-k", "counts", multiple=True, type=int, default=(8, 16), show_default=True)
@click.option("--gate", "gates", multiple=True, type=float, default=GATES, show_default=True)
@click.option("--prompts", "count", default=len(PROMPTS), show_default=True)
@click.option("--tokens", default=40, show_default=True)
@click.option("--rounds", default=3, show_default=True)
@click.option("--threads", type=int, help="[default: OMP_NUM_THREADS, else all cores]")
@click.option("--name", default="gate", show_default=True, help="Of the files that are written.")
def main(
    directory: Path,
    method: str | None,
    weight: float,
    counts: tuple[int, ...],
    gates: tuple[float, ...],
    count: int,
    tokens: int,
    rounds: int,
    threads: int | None,
    name: str,
) -> None:
    """Measure gates on the engine in DIRECTORY (default: the demo's)."""
    engine = load_engine(directory, threads=threads)
    write_all = functools.partial(write_texts, engine, PROMPTS[:count], tokens)
    rows: list[Row] = []
    for k in counts:
        ways = methods(method or "args-stochastic", k, weight, gates)
        texts = {label: write_all(way) for label, way in ways.items()}
        judged = judge(texts)
        speeds = {places: speed(engine, ways, places, rounds, threads) for places in (1, TOGETHER)}
        rows += [
            {
                "k": k,
                "gate": label,
                "open": 1 - texts[label].gated if label != PLAIN else 0.0,
                **judged[label],
                **{f"{n} at a time / plain": speeds[n][label]["ratio"] for n in speeds},
                **{f"{n}: ms a token": speeds[n][label]["median"] for n in speeds},
            }
            for label in ways
        ]
    path = write(
        name,
        rows,
        libraries=("tokenizers", "vaderSentiment", "matplotlib"),
        figure=plot(rows),
        method=method or "args-stochastic",
        weight=weight,
        temperature=TEMPERATURE,
        prompts=count,
        tokens=tokens,
        rounds=rounds,
        threads=threads,
    )
    click.echo(path.with_suffix(".md").read_text(encoding="utf-8"))


def methods(
    method: str, k: int, weight: float, gates: Sequence[float]
) -> dict[str, DecodingMethod]:
    """Plain decoding, and guided decoding behind each gate; the same choice in all of them."""
    if method == "args-greedy":
        guided = {f"{g:g}": ArgsGreedy(top_k=k, weight=weight, gate=g) for g in gates}
        return {PLAIN: Plain(), **guided}
    sampled = {
        f"{g:g}": ArgsStochastic(top_k=k, weight=weight, gate=g, temperature=TEMPERATURE)
        for g in gates
    }
    return {PLAIN: Plain(temperature=TEMPERATURE, top_k=k), **sampled}


def write_texts(
    engine: Engine, prompts: Sequence[str], tokens: int, method: DecodingMethod, places: int = 32
) -> Gated:
    """Continue prompts, so many at a time; each prompt has the same seed in every way."""
    requests = [Request(p, method, max_tokens=tokens, seed=i) for i, p in enumerate(prompts)]
    gated: list[bool] = []
    found = written.write(
        engine, requests, batch_size=places, on_event=lambda event: gated.append(event.gated)
    )
    return Gated(**vars(found), gated=float(np.mean(gated)))


def judge(texts: dict[str, Gated]) -> dict[str, dict[str, float]]:
    """Mean verdicts, perplexity, and the share of full guidance's gain that is kept."""
    found = verdicts(texts)
    # The lowest gate counts as full guidance.
    full, none = list(found.values())[1], found[PLAIN]
    return {
        label: verdict | {f"{j} kept": (verdict[j] - none[j]) / (full[j] - none[j]) for j in JUDGES}
        for label, verdict in found.items()
    }


def speed(
    engine: Engine, ways: dict[str, DecodingMethod], places: int, rounds: int, threads: int | None
) -> dict[str, dict[str, Any]]:
    """Milliseconds per token of each way, in turns, and their ratio to plain decoding's speed."""
    clock = time.process_time if threads == 1 else time.perf_counter
    prompts = PROMPTS[: ALONE if places == 1 else places]

    def timed(method: DecodingMethod) -> Callable[[], float]:
        def run() -> float:
            started = clock()
            tokens = write_texts(engine, prompts, TIMED_TOKENS, method, places).tokens
            return 1e3 * (clock() - started) / tokens

        return run

    runs = {label: timed(method) for label, method in ways.items()}
    rows = in_turns(runs, rounds=rounds, against=PLAIN)
    # Speed, and not time: 1 is as fast as plain decoding.
    return {row["name"]: {**row, "ratio": 1 / row["ratio"]} for row in rows}


def plot(rows: Sequence[Row]) -> Any:
    """Reward kept against speed, a panel for each number of prompts at a time."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, places in zip(panels, (1, TOGETHER), strict=True):
        for k, style in zip(sorted({row["k"] for row in rows}), ("-", "--", ":"), strict=False):
            # Plain decoding is a gate that is never open: it comes behind the highest.
            own = sorted((r for r in rows if r["k"] == k), key=lambda row: row["gate"] == PLAIN)
            x = [row[f"{places} at a time / plain"] for row in own]
            for judged, colour in zip(JUDGES, ("C0", "C1", "C2"), strict=True):
                y = [row[f"{judged} kept"] for row in own]
                axes.plot(x, y, f"{colour}o{style}", label=f"{judged}, k = {k}", markersize=4)
            for row, at in zip(own, x, strict=True):
                axes.annotate(row["gate"], (at, row["reward kept"]), fontsize=7)
        axes.set_title(f"{places} at a time")
        axes.set_xlabel("speed, plain decoding = 1")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("gain over plain that is kept")
    panels[0].legend(fontsize=7)
    return figure


if __name__ == "__main__":
    main()
