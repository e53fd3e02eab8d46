"""``otter-export train``: teach a signal to a checkpoint's channel."""

from __future__ import annotations

import dataclasses
import signal as signals
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from tqdm import tqdm

from otter_export.checkpoint import OTTER_STEM, Checkpoint
from otter_export.cli.finite_range import FiniteRange
from otter_export.config import read_json
from otter_export.files import check_writable, exclusive
from otter_export.modeling import report as reporting
from otter_export.modeling.data import Item, Reader, overlap, split
from otter_export.modeling.objectives import OBJECTIVES, check_objective
from otter_export.modeling.tokenization import end_token_id, load_tokenizer
from otter_export.modeling.train_state import remove_state
from otter_export.modeling.training import Trainer
from otter_export.modeling.training_config import (
    AUTO,
    DTYPES,
    FREEZES,
    Progress,
    TrainingConfig,
    signal_named,
)
from otter_export.signals import kind_of

_DEFAULT = TrainingConfig()


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="CKPT")
@click.option(
    "--data",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE.jsonl",
    help='Lines of {"text", "score"} or {"prompt", "text", "score"} (regression), {"prompt", '
    '"chosen", "rejected"} (pairwise), {"text", "label"} (experts), or {"text"} (drafts, distill).',
)
@click.option(
    "--objective",
    type=click.Choice(list(OBJECTIVES)),
    help="[default: the first for the signal's kind: regression, experts or drafts]",
)
@click.option(
    "--eval-data",
    type=click.Path(path_type=Path),
    metavar="FILE.jsonl",
    help="Held-out lines; without it, a share of --data is held out.",
)
@click.option(
    "--eval-fraction",
    type=FiniteRange(0, 1, True, True),
    default=0.1,
    show_default=True,
    help="Share held out of --data.",
)
@click.option(
    "--test-data",
    type=click.Path(path_type=Path),
    metavar="FILE.jsonl",
    help="Judged once, at the end; chooses nothing.",
)
@click.option("--signal", "signal_name", help="Signal to train; default: the checkpoint's first.")
@click.option(
    "--trainable",
    default=_DEFAULT.trainable,
    show_default=True,
    metavar="REGEX",
    help="Inserted tensors that learn, by name.",
)
@click.option(
    "--freeze",
    type=click.Choice(FREEZES),
    default=_DEFAULT.freeze,
    show_default=True,
    help="channel: the signal's head alone learns, and the other signals keep their values.",
)
@click.option(
    "--teacher",
    metavar="SIGNAL",
    help="Of distill: the value signal to learn from.  [default: the first]",
)
@click.option(
    "--neutral-weight",
    type=FiniteRange(0),
    default=_DEFAULT.neutral_weight,
    show_default=True,
    help="Of experts: what a nat of divergence from the base costs on neutral text.",
)
@click.option(
    "--labelled-weight",
    type=FiniteRange(0),
    default=_DEFAULT.labelled_weight,
    show_default=True,
    help="The same on text labelled expert or anti.",
)
@click.option(
    "--score-scale",
    type=FiniteRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="Scores are divided by this.",
)
@click.option("--epochs", type=click.IntRange(1), default=_DEFAULT.epochs, show_default=True)
@click.option(
    "--max-steps", type=click.IntRange(0), default=0, show_default=True, help="0: no limit."
)
@click.option(
    "--batch-tokens",
    type=click.IntRange(16),
    default=_DEFAULT.batch_tokens,
    show_default=True,
    help="Tokens per step, padding included.",
)
@click.option(
    "--max-tokens",
    type=click.IntRange(2),
    default=512,
    show_default=True,
    help="Longer texts are cut.",
)
@click.option(
    "--learning-rate",
    type=FiniteRange(0, min_open=True),
    default=_DEFAULT.learning_rate,
    show_default=True,
)
@click.option(
    "--weight-decay", type=FiniteRange(0), default=_DEFAULT.weight_decay, show_default=True
)
@click.option(
    "--eval-every",
    type=click.IntRange(1),
    default=_DEFAULT.eval_every,
    metavar="STEPS",
    show_default=True,
    help="Steps between evaluations; each saves the state.",
)
@click.option(
    "--eval-items",
    type=click.IntRange(1),
    default=_DEFAULT.eval_items,
    show_default=True,
    help="Held-out items judged then; all are at the end.",
)
@click.option(
    "--patience",
    type=click.IntRange(0),
    default=_DEFAULT.patience,
    show_default=True,
    help="Stop after so many evaluations without progress; 0: never.",
)
@click.option(
    "--dtype",
    type=click.Choice([*DTYPES, AUTO]),
    default=_DEFAULT.dtype,
    show_default=True,
    help="Of the base's arithmetic while training; auto: the faster one on this processor.",
)
@click.option(
    "--max-seconds",
    type=FiniteRange(0),
    default=0.0,
    show_default=True,
    help="Shorten the schedule to end in this time; 0: no limit.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--restart", is_flag=True, help="Forget an unfinished run instead of resuming it.")
@click.option(
    "--delta",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write the trained tensors alone, float16, for insert --from.",
)
def train(
    checkpoint: Path,
    data: Path,
    objective: str | None,
    eval_data: Path | None,
    test_data: Path | None,
    eval_fraction: float,
    signal_name: str | None,
    score_scale: float,
    max_tokens: int,
    restart: bool,
    delta: Path | None,
    **settings: Any,
) -> None:
    """Train a signal of the checkpoint CKPT; the base stays frozen.

    Every token of each response is supervised. A run that was interrupted continues when the same
    command is repeated. The result replaces CKPT/otter.safetensors, with training_report.json and
    training_curve.png beside it.
    """
    click.get_current_context().with_resource(exclusive(checkpoint, "is being trained or read"))
    opened = Checkpoint.open(checkpoint)
    if delta is not None:
        check_writable(delta)
    signal = signal_named(opened, signal_name or opened.config.signals[0].name)
    objective = objective or kind_of(signal).objectives[0]
    check_objective(objective, signal)
    if settings["teacher"] is not None and objective != "distill":
        raise click.UsageError(f"--teacher is for --objective distill, not {objective}")
    reader = Reader(
        objective,
        signal,
        load_tokenizer(opened.base.directory),
        end_token_id(opened.base),
        score_scale,
        min(max_tokens, opened.base.dimensions.max_position_embeddings),
    )
    items = reader.read(data)
    config = TrainingConfig(objective=objective, signal=signal.name, **settings)
    if eval_data is None:
        items, held_out = split(items, eval_fraction, config.seed)
    else:
        held_out = reader.read(eval_data)
    judged = {"held_out": held_out} | ({"test": reader.read(test_data)} if test_data else {})
    trainer = Trainer(opened, config, items, held_out, ends=reader.end_id is not None)
    if restart:
        remove_state(checkpoint)
    if trainer.is_written():  # killed when all was done but the end
        _finish(checkpoint, read_json(checkpoint / reporting.REPORT))
        return
    resumed = trainer.resume()
    _show_settings(trainer, resumed)
    for name, judged_items in judged.items():
        if shared := overlap(items, judged_items):
            click.echo(
                f"warning    {shared} of {len(judged_items)} {name.replace('_', '-')} items are "
                "also trained on; the metric will flatter",
                err=True,
            )
    if trainer.at_stake:
        click.echo(
            f"warning    the channel learns, and the other signals read it: "
            f"{', '.join(trainer.at_stake)} will change; --freeze channel keeps them",
            err=True,
        )
    _run(trainer)
    trainer.use_best()
    results = {name: _judge(trainer, name, items) for name, items in judged.items()}
    if delta is not None:
        reporting.write_delta(delta, trainer.best)
    sources = {
        "data": data.name,
        "eval_data": eval_data.name if eval_data else None,
        "test_data": test_data.name if test_data else None,
        "eval_fraction": eval_fraction,
        "score_scale": score_scale,
        "max_tokens": reader.max_tokens,
    }
    content = reporting.report(trainer, sources, results)
    # The tensors come last: until they are replaced, a repeated command resumes this run.
    reporting.write_report(checkpoint, content)
    trainer.note_result()
    reporting.write_trained(opened, trainer.best)
    _finish(checkpoint, content)


def _finish(checkpoint: Path, content: Mapping[str, Any]) -> None:
    """Forget the state of a run whose results are written, and show them."""
    remove_state(checkpoint)
    click.echo(reporting.summary(content))
    path = checkpoint / f"{OTTER_STEM}.safetensors"
    click.echo(
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, "
        f"step {content['best_step']} of {content['steps']}, {content['seconds']:.0f} s"
    )


def _show_settings(trainer: Trainer, resumed: bool) -> None:
    """Resolved settings, before anything slow happens."""
    parameters = sum(p.numel() for p in trainer.parameters.values())
    tokens = sum(len(row.ids) - row.start for item in trainer.train for row in item.rows)
    rows = {
        "signal": f"{trainer.signal.name} ({trainer.signal.kind}, {trainer.signal.activation}), "
        f"by {trainer.config.objective}",
        "trainable": f"{parameters:,} parameters in {len(trainer.parameters)} tensors",
        "data": f"{len(trainer.train)} items ({tokens:,} supervised tokens), "
        f"{len(trainer.held_out)} held out",
        "steps": f"{trainer.total_steps} ({trainer.config.epochs} epochs)",
        "settings": ", ".join(
            f"{k} {v}"
            for k, v in dataclasses.asdict(trainer.config).items()
            if k in ("learning_rate", "batch_tokens", "dtype", "seed", "max_seconds", "patience")
        ),
    }
    if resumed:
        rows["resumed"] = f"at step {trainer.progress.step}"
    for name, value in rows.items():
        click.echo(f"{name:10} {value}", err=True)


def _run(trainer: Trainer) -> None:
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
            metric = trainer.objective.metric
            if progress.evaluations:
                shown[f"held-out {metric}"] = progress.evaluations[-1][metric][
                    trainer.objective.chosen
                ]
            bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items()}, refresh=False)
            bar.update(progress.step - bar.n)

        finished = trainer.run(listen, lambda: bool(requests))
    if not finished:
        raise click.exceptions.Abort()


def _judge(trainer: Trainer, name: str, items: list[Item]) -> dict[str, Any]:
    with tqdm(
        total=len(items), desc=f"judging {name.replace('_', '-')}", delay=2, leave=False
    ) as bar:
        return {"items": len(items), **trainer.evaluate(items, bar.update)}


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
