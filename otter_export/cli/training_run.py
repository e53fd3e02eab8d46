"""A training run as a terminal shows it: settings, warnings, progress, Ctrl-C, results."""

from __future__ import annotations

import dataclasses
import signal as signals
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from otter_export.checkpoint import OTTER_STEM
from otter_export.modeling import report as reporting
from otter_export.modeling.data import Item, overlap
from otter_export.modeling.learner import Learner
from otter_export.modeling.train_state import remove_state
from otter_export.modeling.training import Trainer
from otter_export.modeling.training_config import Progress


def finish(checkpoint: Path, content: Mapping[str, Any]) -> None:
    """Forget the state of a run whose results are written, and show them."""
    remove_state(checkpoint)
    click.echo(reporting.summary(content))
    path = checkpoint / f"{OTTER_STEM}.safetensors"
    click.echo(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, "
        f"step {content['best_step']} of {content['steps']}, {content['seconds']:.0f} s"
    )


def show_settings(trainer: Trainer, resumed: bool) -> None:
    """Resolved settings, before anything slow happens."""
    parameters = sum(p.numel() for p in trainer.parameters.values())
    rows = []
    for learner in trainer.learners:
        signal, task = learner.signal, learner.task
        tokens = sum(len(row.ids) - row.start for item in task.train for row in item.rows)
        weight = f", weight {task.weight:g}" if len(trainer.learners) > 1 else ""
        about = f"{signal.name} ({signal.kind}, {signal.activation}), by {task.objective}{weight}"
        items = f"{len(task.train)} items ({tokens:,} supervised tokens)"
        rows += [("signal", about), ("data", f"{items}, {len(task.held_out)} held out")]
    chosen = ("learning_rate", "batch_tokens", "dtype", "seed", "max_seconds", "patience")
    settings = dataclasses.asdict(trainer.config)
    rows += [
        ("trainable", f"{parameters:,} parameters in {len(trainer.parameters)} tensors"),
        ("steps", f"{trainer.total_steps} ({trainer.config.epochs} epochs)"),
        ("settings", ", ".join(f"{name} {settings[name]}" for name in chosen)),
    ]
    if resumed:
        rows.append(("resumed", f"at step {trainer.progress.step}"))
    for name, value in rows:
        click.echo(f"{name:10} {value}", err=True)


def warn(trainer: Trainer, test: Sequence[Item]) -> None:
    """Name what makes results look better than they are, and what the run changes besides."""
    tasks = {learner.name: learner.task for learner in trainer.learners}
    judged = [(task, "held-out", task.held_out) for task in tasks.values()]
    judged += [(task, "test", test) for task in tasks.values()]
    judged += [
        (tasks[one.name], "also-test", one.task.held_out)
        for one in trainer.watched
        if one.name in tasks
    ]
    warnings = [
        f"{shared} of {len(items)} {what} items of {task.signal} are also trained on; the metric "
        "will flatter"
        for task, what, items in judged
        if (shared := overlap(task.train, items))
    ]
    if trainer.at_stake:
        warnings.append(
            "the channel learns, and the other signals read it: "
            f"{', '.join(trainer.at_stake)} will change; --freeze channel keeps them"
        )
    for warning in warnings:
        click.echo(f"warning    {warning}", err=True)


def run(trainer: Trainer) -> None:
    """Train under a progress bar; Ctrl-C saves the state and ends after the current step."""
    with (
        _stop_requests() as requests,
        tqdm(total=trainer.total_steps, initial=trainer.progress.step, unit="step", delay=2) as bar,
    ):

        def listen(progress: Progress, total_steps: int) -> None:
            shown: dict[str, float] = {}
            if progress.curve:
                recent = [point["loss"] for point in progress.curve[-20:]]
                shown["loss"] = sum(recent) / len(recent)
            if progress.evaluations:
                for learner in trainer.learners:
                    last = progress.evaluations[-1]["signals"][learner.name]
                    which = f"{learner.name} " if len(trainer.learners) > 1 else ""
                    shown[f"held-out {which}{learner.objective.metric}"] = learner.chosen(last)
            bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items()}, refresh=False)
            bar.update(progress.step - bar.n)

        finished = trainer.run(listen, lambda: bool(requests))
    if not finished:
        raise click.exceptions.Abort()


def judge(learner: Learner, sets: Mapping[str, Sequence[Item]]) -> dict[str, Any]:
    """`Learner.evaluate` of each set of items that is not empty."""
    found = {}
    for name, items in sets.items():
        if items:
            label = f"judging {learner.name}, {name.replace('_', '-')}"
            with tqdm(total=len(items), desc=label, delay=2, leave=False) as bar:
                found[name] = {"items": len(items), **learner.evaluate(items, bar.update)}
    return found


@contextmanager
def _stop_requests() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM; a second one interrupts at once."""
    requests: list[int] = []

    def handle(number: int, frame: object) -> None:
        if requests:
            raise KeyboardInterrupt
        requests.append(number)
        click.echo("\nsaving the state; repeat the command to resume", err=True)

    previous = {s: signals.signal(s, handle) for s in (signals.SIGINT, signals.SIGTERM)}
    try:
        yield requests
    finally:
        for number, handler in previous.items():
            signals.signal(number, handler)
