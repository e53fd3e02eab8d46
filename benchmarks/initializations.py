"""Initialisations: how well a channel predicts after how many tokens, from each beginning.

    python -m benchmarks.initializations [--steps 0 8 16 32 64] [--seeds 0 1 2] [--jobs 2]
    python -m benchmarks.initializations --quick      # two steps of one seed: whether it runs

Otter's paper compares ``copy`` with ``normal`` and ``random``; ``probe`` is ours. On the demo's
base and ratings, a ``value`` signal learns by regression. Every run reads the same texts in the
order of its seed, which also draws what its initialisation draws. All have one learning rate, and
begin at a late layer, since what lies below costs time and gains little (docs/performance.md, "The
shape of a channel"). Held-out snippets are judged on the way: the points of a curve share one
schedule, so that an early one is not the best that so few tokens could give. *Tokens* are those
that were learnt from, and, for ``probe``, those of the ``--texts`` that it was fitted to.

Two intervals of 95 % that mean different things: *seeds* is Student's t over the runs, wide by
nature with three; *items* is a paired bootstrap over the held-out snippets, whose mean over seeds
is the statistic, and says nothing of other seeds. A run that is kept under ``--out`` is not made
again, so the sweep may be stopped. Each process has one thread. Writes
``benchmarks/results/initializations.*``; ``--quick`` writes under ``--out``.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import multiprocessing
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from benchmarks import record
from examples.sentiment.material import Material, prepare
from otter_export import insert
from otter_export.base_model import BaseModel
from otter_export.channel_options import ChannelOptions, channel_config
from otter_export.checkpoint import Checkpoint
from otter_export.files import write_json
from otter_export.modeling.data import Item, Reader, split
from otter_export.modeling.learner import Task
from otter_export.modeling.objectives.objective import Judged
from otter_export.modeling.probe_fit import fit_probe
from otter_export.modeling.tokenization import end_token_id, load_tokenizer
from otter_export.modeling.training import Trainer
from otter_export.modeling.training_config import Progress, TrainingConfig

Array = npt.NDArray[np.float64]

INITIALIZATIONS = ("copy", "normal", "random", "probe")
#: What the others are compared with: the paper's choice.
REFERENCE = INITIALIZATIONS[0]
#: The demo's widths.
SHAPE = ChannelOptions(hidden_size=32, intermediate_size=32, heads=3)
#: Shares of a text whose correlations are reported, per cent.
SHARES = ("25", "50", "75", "100")
DRAWN, COMPARED = ("50", "100"), "100"
RESAMPLES = 2000
#: Student's t, two-sided 95 %, by the number of seeds.
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}


@dataclasses.dataclass(frozen=True)
class Run:
    """One training; the name is also its directory's."""

    initialization: str
    seed: int

    @property
    def name(self) -> str:
        """Such as ``copy-0``."""
        return f"{self.initialization}-{self.seed}"


def kept(run: Run, options: argparse.Namespace) -> dict[str, Any] | None:
    """What a run gave earlier with the same settings."""
    path = options.out / f"{run.name}.json"
    found = json.loads(path.read_text()) if path.is_file() else {"settings": None}
    return dict(found) if found["settings"] == settings(options) else None


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """What a kept run must have been made with."""
    names = ("steps", "batch_tokens", "learning_rate", "items", "texts", "first_layer")
    return {name: getattr(options, name) for name in names}


def make(run: Run, material: Material, options: argparse.Namespace) -> dict[str, Any]:
    """Train and judge one run, and keep what it gave."""
    torch.set_num_threads(1)
    started, directory = time.monotonic(), options.out / run.name
    found = {"settings": settings(options), **train(run, directory, material, options)}
    shutil.rmtree(directory)
    found["seconds"] = round(time.monotonic() - started, 1)
    write_json(options.out / f"{run.name}.json", found)
    return found


def train(
    run: Run, directory: Path, material: Material, options: argparse.Namespace
) -> dict[str, Any]:
    """The points of one curve, each with the rewards of the held-out snippets; their scores."""
    base = BaseModel.open(material.base)
    tokenizer, end = load_tokenizer(base.directory), end_token_id(base)
    reader = Reader("regression", SHAPE.signals[0], tokenizer, end)
    items, held_out = split(reader.read(material.train), 0.03, 0)
    fitted = begin(run, directory, base, items, options)
    config = TrainingConfig(
        max_steps=options.steps[-1],
        batch_tokens=options.batch_tokens,
        learning_rate=options.learning_rate,
        eval_every=options.steps[-1],
        eval_items=8,  # of no use here: points are judged on the test split
        seed=run.seed,
    )
    task = Task(SHAPE.signals[0].name, "regression", items, held_out)
    trainer = Trainer(Checkpoint.open(directory), config, [task])
    test = reader.read(material.test)[: options.items]
    points: dict[int, Judged] = {}
    tokens: dict[int, int] = {}

    def judge(progress: Progress, total_steps: int = 0) -> None:
        if progress.step in options.steps:
            points[progress.step] = trainer.learners[0].judge(test)[1]
            tokens[progress.step] = fitted + progress.tokens

    judge(trainer.progress)
    trainer.run(judge)
    return {
        "points": [
            {
                "step": step,
                "tokens": tokens[step],
                "rewards": {share: judged[share].tolist() for share in SHARES},
            }
            for step, judged in points.items()
        ],
        "scores": points[0]["score"].tolist(),
    }


def begin(
    run: Run, directory: Path, base: BaseModel, items: Sequence[Item], options: argparse.Namespace
) -> int:
    """Insert the untrained channel; returns the number of tokens that it was fitted to."""
    channel = dataclasses.replace(
        SHAPE,
        initialization=run.initialization,
        first_layer=options.first_layer,
        seed=run.seed,
    )
    probe, fitted = None, 0
    if run.initialization == "probe":
        order = np.random.default_rng(run.seed).permutation(len(items))
        texts = [items[i] for i in order[: options.texts]]
        probe = fit_probe(base, channel_config(base, channel), texts, run.seed)
        fitted = sum(item.length for item in texts)
    name = str(base.directory)
    insert.plan(name, directory, channel, adapter=True, force=True, probe=probe).write()
    return fitted


def sweep(material: Material, options: argparse.Namespace) -> dict[Run, dict[str, Any]]:
    """Make every run, ``--jobs`` at a time, each in a process of its own."""
    runs = [Run(name, seed) for seed in options.seeds for name in INITIALIZATIONS]
    options.out.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    found = {run: one for run in runs if (one := kept(run, options))}
    with concurrent.futures.ProcessPoolExecutor(options.jobs, mp_context=context) as pool:
        left = [run for run in runs if run not in found]
        futures = {pool.submit(make, run, material, options): run for run in left}
        done = concurrent.futures.as_completed(futures)
        found |= {futures[future]: future.result() for future in tqdm(done, "runs", len(futures))}
    return {run: found[run] for run in runs}


def resampled(rewards: Array, scores: Array, counts: Array) -> Array:
    """Pearson correlations ``[R]`` of resamples; ``counts`` ``[R, N]`` says how often each item."""
    counts = counts / counts.sum(1, keepdims=True)
    x, y = counts @ rewards, counts @ scores
    covariance = counts @ (rewards * scores) - x * y
    variances = (counts @ rewards**2 - x**2) * (counts @ scores**2 - y**2)
    return np.asarray(covariance / np.sqrt(variances), np.float64)


def rows_of(
    found: Mapping[Run, Mapping[str, Any]], resamples: int = RESAMPLES
) -> list[dict[str, Any]]:
    """A row for each initialisation and budget, see the module's docstring."""
    scores = np.array(next(iter(found.values()))["scores"])
    n = len(scores)
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), resamples)
    # The first resample is the sample itself.
    counts = np.concatenate([np.ones((1, n)), drawn])
    reference: dict[int, Array] = {}
    rows = []
    for name in INITIALIZATIONS:
        curves = [one["points"] for run, one in found.items() if run.initialization == name]
        for points in zip(*curves, strict=True):
            step = points[0]["step"]
            values = {
                share: np.array(
                    [resampled(np.array(p["rewards"][share]), scores, counts) for p in points]
                )
                for share in SHARES
            }
            mean = values[COMPARED].mean(0)
            row = {"initialisation": name, "steps": step}
            row["tokens"] = round(statistics.mean(p["tokens"] for p in points))
            row |= {f"r at {share} %": float(v[:, 0].mean()) for share, v in values.items()}
            row["seeds ±"] = seeds_interval(values[COMPARED][:, 0])
            row["items 95 %"] = interval(mean)
            difference = mean - reference.setdefault(step, mean)
            if name != REFERENCE:
                row[f"- {REFERENCE}"] = float(difference[0])
                row[f"- {REFERENCE}, items 95 %"] = interval(difference)
            rows.append(row)
    return rows


def seeds_interval(values: Array) -> float | None:
    """Half of Student's interval of a mean; none of a single value."""
    if len(values) not in STUDENT:
        return None
    return float(STUDENT[len(values)] * values.std(ddof=1) / np.sqrt(len(values)))


def interval(values: Array) -> str:
    """The percentile interval of resamples, the first of which is the sample."""
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return f"{low:+.2f} {high:+.2f}"


def plot(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Correlation over tokens, a line for each initialisation, with Student's interval as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axis, share in zip(figure.subplots(1, len(DRAWN), sharey=True), DRAWN, strict=True):
        for name in INITIALIZATIONS:
            own = [row for row in rows if row["initialisation"] == name]
            xs, ys = [row["tokens"] for row in own], [row[f"r at {share} %"] for row in own]
            errors = [row["seeds ±"] or 0.0 for row in own] if share == COMPARED else None
            axis.errorbar(xs, ys, errors, fmt="o-", capsize=3, label=name)
        axis.set(xlabel="tokens read", title=f"at {share} % of a snippet")
        axis.grid(alpha=0.3)
    figure.axes[0].set_ylabel("correlation with people")
    figure.axes[-1].legend()
    return figure


def main() -> None:
    """Make every run; write the record and print its table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--steps", nargs="+", type=int, default=[0, 8, 16, 32, 64])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--batch-tokens", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=0.004)
    parser.add_argument("--items", type=int, default=200, help="held-out snippets that are read")
    parser.add_argument("--texts", type=int, default=512, help="that a probe is fitted to")
    parser.add_argument("--first-layer", type=int, default=20, help="of 30")
    parser.add_argument("--jobs", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--quick", action="store_true", help="whether it runs, no more")
    parser.add_argument("--out", type=Path, default=record.REPOSITORY / "build" / "initializations")
    options = parser.parse_args()
    folder = record.RESULTS
    if options.quick:
        options.steps, options.seeds, options.items, options.texts = [0, 2], [0], 16, 32
        folder = options.out
    found = sweep(prepare(report=print), options)
    rows = rows_of(found)
    seconds = sum(one["seconds"] for one in found.values())
    details = {"settings": settings(options), "seeds": options.seeds, "seconds": round(seconds)}
    record.write(
        "initializations", rows, libraries=("torch",), folder=folder, figure=plot(rows), **details
    )
    print(record.table(rows), end="")


if __name__ == "__main__":
    main()
