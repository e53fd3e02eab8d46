"""``otter-export train``: teach a signal to a checkpoint's channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from otter_export.checkpoint import Checkpoint
from otter_export.cli.finite_range import FiniteRange
from otter_export.cli.label import described
from otter_export.cli.label import run as run_labelling
from otter_export.cli.task_option import TaskOption, TaskType
from otter_export.cli.task_reader import TaskReader
from otter_export.cli.training_run import finish, judge, run, show_settings, warn
from otter_export.config import read_json
from otter_export.files import check_writable, exclusive
from otter_export.modeling import report as reporting
from otter_export.modeling.data import Reader
from otter_export.modeling.labelling import Places
from otter_export.modeling.learner import Task
from otter_export.modeling.objectives import OBJECTIVES
from otter_export.modeling.train_state import remove_state
from otter_export.modeling.training import Trainer
from otter_export.modeling.training_config import AUTO, DTYPES, FREEZES, TrainingConfig

_DEFAULT = TrainingConfig()
_TASK, _TEST = TaskType(weighted=True), TaskType(weighted=False)


@click.command()
@click.argument("checkpoint", type=click.Path(path_type=Path), metavar="CKPT")
@click.option(
    "--data",
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
    "--task",
    "given",
    type=_TASK,
    multiple=True,
    metavar=_TASK.form,
    help="In place of --data, --objective and --signal: several learn together; repeatable.",
)
@click.option(
    "--also-test",
    type=_TEST,
    multiple=True,
    metavar=_TEST.form,
    help="Judge this signal of the checkpoint before and after; it need not learn. Repeatable.",
)
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
    help="channel: heads alone learn, and the other signals keep their values.",
)
@click.option(
    "--teacher",
    metavar="SIGNAL|RM",
    help="Of distill: the value signal to learn from.  [default: the first]  Of regression: the "
    "directory of a reward model, which scores --data first, as `label` does.",
)
@click.option(
    "--alternatives",
    type=click.IntRange(0),
    help="Of distill: the base's likeliest next tokens that are tried at a position.  "
    f"[default: {_DEFAULT.alternatives}]",
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
    "--discriminative-weight",
    type=FiniteRange(0),
    default=_DEFAULT.discriminative_weight,
    show_default=True,
    help="Of experts: what a nat of doubt costs about the class that a labelled text is of.",
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
    data: Path | None,
    objective: str | None,
    eval_data: Path | None,
    test_data: Path | None,
    eval_fraction: float,
    signal_name: str | None,
    given: tuple[TaskOption, ...],
    also_test: tuple[TaskOption, ...],
    score_scale: float,
    max_tokens: int,
    restart: bool,
    delta: Path | None,
    teacher: str | None,
    alternatives: int | None,
    **settings: Any,
) -> None:
    """Train signals of the checkpoint CKPT; the base stays frozen.

    One signal learns from --data, or several together, each by a --task of its own. Every token of
    each response is supervised. A run that was interrupted continues when the same command is
    repeated. The result replaces CKPT/otter.safetensors, with training_report.json and
    training_curve.png beside it.
    """
    single = {
        "--data": data,
        "--objective": objective,
        "--signal": signal_name,
        "--eval-data": eval_data,
        "--test-data": test_data,
    }
    _check_form(single, given)
    if teacher and data and objective in (None, "regression") and Path(teacher).is_dir():
        data, teacher = _labelled(Path(teacher), data), None
    click.get_current_context().with_resource(exclusive(checkpoint, "is being trained or read"))
    opened = Checkpoint.open(checkpoint)
    if delta is not None:
        check_writable(delta)
    if data is not None:
        given = (TaskOption(signal_name, objective, data),)
    config = TrainingConfig(**settings | _given(teacher=teacher, alternatives=alternatives))
    reader = TaskReader(opened, score_scale, max_tokens)
    _check_distill(teacher, alternatives, [reader.reader(one) for one in (*given, *also_test)])
    tasks = [reader.learned(one, eval_data, eval_fraction, config.seed) for one in given]
    watched = [reader.judged(one) for one in also_test]
    test = reader.reader(given[0]).read(test_data) if test_data else []
    trainer = Trainer(opened, config, tasks, watched, ends=reader.end_id is not None)
    if restart:
        remove_state(checkpoint)
    if trainer.is_written():  # killed when all was done but the end
        finish(checkpoint, read_json(checkpoint / reporting.REPORT))
        return
    resumed = trainer.resume()
    show_settings(trainer, resumed)
    warn(trainer, test)
    run(trainer)
    trainer.use_best()
    results = {
        learner.name: judge(learner, {"held_out": learner.task.held_out, "test": test})
        for learner in trainer.learners
    }
    after = trainer.judge_watched()
    if delta is not None:
        reporting.write_delta(delta, trainer.best)
    sources = {
        "data": data.name if data else _names(tasks, given),
        "also_test": _names(watched, also_test),
        "eval_data": eval_data.name if eval_data else None,
        "test_data": test_data.name if test_data else None,
        "eval_fraction": eval_fraction,
        "score_scale": score_scale,
        "max_tokens": reader.max_tokens,
    }
    content = reporting.report(trainer, sources, results, after)
    # The tensors come last: until they are replaced, a repeated command resumes this run.
    reporting.write_report(checkpoint, content)
    trainer.note_result()
    reporting.write_trained(opened, trainer.best)
    finish(checkpoint, content)


def _check_form(single: Mapping[str, object], tasks: Sequence[TaskOption]) -> None:
    """One signal by --data, or several by --task.

    Raises:
        click.UsageError: Neither or both were given.
    """
    if tasks and (mixed := [name for name, value in single.items() if value is not None]):
        raise click.UsageError(
            f"{mixed[0]} is for training one signal; with --task, name signal, objective and file "
            "there, and test files with --also-test"
        )
    if not tasks and single["--data"] is None:
        raise click.UsageError("give --data FILE.jsonl, or a --task for each signal that learns")


def _labelled(teacher: Path, data: Path) -> Path:
    """Labels of a reward model for the data, in a file beside it."""
    out = data.with_name(f"{data.stem}.{teacher.resolve().name}.jsonl")
    scale = run_labelling(teacher, data, out, Places())
    click.echo(f"{'labels':10} {out}, {described(scale)}", err=True)
    return out


def _check_distill(
    teacher: str | None, alternatives: int | None, readers: Sequence[Reader]
) -> None:
    """Its options need it.

    Raises:
        click.UsageError: One is given without it.
    """
    objectives = list(dict.fromkeys(reader.objective for reader in readers))
    for name, value in (("--teacher", teacher), ("--alternatives", alternatives)):
        if value is not None and "distill" not in objectives:
            raise click.UsageError(
                f"{name} is for --objective distill, not {', '.join(objectives)}"
                + ("; a reward model is a directory" if name == "--teacher" else "")
            )


def _given(**options: object) -> dict[str, Any]:
    """The options that were given; of the others the configuration has defaults."""
    return {name: value for name, value in options.items() if value is not None}


def _names(tasks: Sequence[Task], options: Sequence[TaskOption]) -> dict[str, str]:
    """The names of files, by signal."""
    return {task.signal: one.file.name for task, one in zip(tasks, options, strict=True)}
