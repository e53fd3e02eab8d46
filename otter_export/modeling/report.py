"""The results of a training run in the checkpoint: tensors, a JSON report and a picture."""

from __future__ import annotations

import dataclasses
import functools
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from otter_export.checkpoint import OTTER_STEM, Checkpoint
from otter_export.files import replacing
from otter_export.modeling.objectives.rewards import PREFIXES
from otter_export.modeling.train_state import write_json
from otter_export.modeling.training import Trainer, stored_bits
from otter_export.safetensors_io import PlannedTensor, rounded, write_safetensors

REPORT = "training_report.json"
CURVE = "training_curve.png"
_SMOOTHING = 0.95
#: Keys of metrics that are shares of a text.
_PREFIXES = tuple(map(str, PREFIXES))
_LABELS = {"end": "end token"}


def write_trained(checkpoint: Checkpoint, trained: Mapping[str, Tensor]) -> int:
    """Replace the inserted tensors of a checkpoint; those not trained keep their bits.

    Args:
        checkpoint: Whose ``otter.safetensors`` is replaced, atomically; each tensor keeps its
            stored dtype.
        trained: Float32 values by name.

    Returns:
        The file's size in bytes.
    """
    plan = [
        PlannedTensor(
            name,
            info.dtype,
            info.shape,
            lambda name=name: stored_bits(checkpoint, trained, name),  # type: ignore[misc]
        )
        for name, info in checkpoint.tensors.items()
    ]
    return write_safetensors(checkpoint.directory / f"{OTTER_STEM}.safetensors", plan)


def write_delta(path: Path, trained: Mapping[str, Tensor]) -> int:
    """Write the trained tensors alone, in float16, for ``otter-export insert --from``.

    Returns:
        The file's size in bytes.

    Raises:
        CheckpointError: A value is beyond the range of float16.
    """
    plan = [
        PlannedTensor(name, "F16", tuple(t.shape), functools.partial(_halves, name, t))
        for name, t in sorted(trained.items())
    ]
    return write_safetensors(path, plan)


def _halves(name: str, tensor: Tensor) -> npt.NDArray[Any]:
    return rounded(name, tensor.numpy(), "F16", "repeat the command without --delta")


def report(
    trainer: Trainer,
    settings: Mapping[str, Any],
    results: Mapping[str, Mapping[str, Any]],
    after: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """The content of ``training_report.json``.

    What is of one signal (objective, metric, results, what it was before, items) is at the top of
    the report of a run that trained one, and else under ``signals``, by name.

    Args:
        trainer: After its run.
        settings: What the user chose besides the training configuration (data, split).
        results: By signal, `Learner.evaluate` of the best tensors on each set: ``held_out``,
            ``test``.
        after: `Trainer.judge_watched` of the best tensors.
    """
    p = trainer.progress
    return {
        **_parts(trainer, results),
        "best_step": p.best_step,
        "steps": p.step,
        "epochs": p.step / trainer.steps_per_epoch,
        "supervised_tokens": p.tokens,
        "seconds": round(p.seconds, 1),
        "trained_tensors": len(trainer.parameters),
        "trained_parameters": sum(t.numel() for t in trainer.parameters.values()),
        "config": dataclasses.asdict(trainer.config),
        "others": trainer.changes_of_others(),
        "also_tested": _watched(trainer, after),
        "settings": dict(settings),
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "curve": p.curve,
    }


def _parts(trainer: Trainer, results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What is of one signal."""
    evaluations = trainer.progress.evaluations
    parts = {}
    for learner in trainer.learners:
        name, task = learner.name, learner.task
        own = [{"step": e["step"], **e["signals"][name]} for e in evaluations]
        parts[name] = {
            "objective": task.objective,
            "signal": name,
            "metric": learner.objective.metric,
            "chosen": learner.objective.chosen,
            "weight": task.weight,
            "results": dict(results[name]),
            "before": own[0],
            "items": {"train": len(task.train), "held_out": len(task.held_out)},
            "evaluations": own,
        }
    if len(parts) == 1:
        return next(iter(parts.values()))
    losses = [{"step": e["step"], "loss": e["loss"]} for e in evaluations]
    return {"signals": parts, "evaluations": losses}


def _watched(trainer: Trainer, after: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What was judged besides, by signal: ``same`` where no bit of the figures changed."""
    before = trainer.progress.watched
    return {
        one.name: {
            "objective": one.task.objective,
            "metric": one.objective.metric,
            "items": len(one.task.held_out),
            "before": before[one.name],
            "after": after[one.name],
            "same": before[one.name] == after[one.name],
        }
        for one in trainer.watched
    }


def signal_parts(content: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """What a report says of each signal that was trained, by name."""
    return content["signals"] if "signals" in content else {content["signal"]: content}


def write_report(checkpoint: Path, content: Mapping[str, Any]) -> None:
    """Write the report and draw its curve into a checkpoint directory."""
    write_json(checkpoint / REPORT, content)
    draw_curve(checkpoint / CURVE, content)


def draw_curve(path: Path, content: Mapping[str, Any]) -> None:
    """Draw the loss per step, and the held-out metric by prefix, of a report."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps = [point["step"] for point in content["curve"]]
    losses = [point["loss"] for point in content["curve"]]
    left.plot(steps, losses, color="tab:blue", alpha=0.25, linewidth=0.8)
    left.plot(steps, smoothed(losses), color="tab:blue", label="training, smoothed")
    evaluations = content["evaluations"]
    at = [e["step"] for e in evaluations]
    left.plot(at, [e["loss"] for e in evaluations], "o-", color="tab:orange", label="held-out")
    left.set(xlabel="step", ylabel="loss")
    left.legend()
    for label, values in _metric_curves(content):
        right.plot(at, values, "o-", label=label)
    right.set(xlabel="step", ylabel=f"held-out {content.get('metric', 'metrics')}")
    right.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))  # beside the curves, not on them
    for axis in (left, right):
        axis.grid(alpha=0.3)
    with replacing(path) as file:
        FigureCanvasAgg(figure).print_png(file)  # type: ignore[no-untyped-call]


def _metric_curves(content: Mapping[str, Any]) -> Iterator[tuple[str, list[float]]]:
    """Label and values of each line: all figures of one signal, or the chosen one of several."""
    parts = signal_parts(content)
    for name, part in parts.items():
        points = [e[part["metric"]] for e in part["evaluations"]]
        for key in points[0]:
            if len(parts) == 1:
                label = f"{key} % of the text" if key in _PREFIXES else _LABELS.get(key, key)
            elif key == part["chosen"]:
                label = f"{name}: {part['metric']}"
            else:
                continue
            yield label, [point[key] for point in points]


def smoothed(values: list[float]) -> list[float]:
    """Exponential moving average without the bias of its start."""
    result: list[float] = []
    total, weight = 0.0, 0.0
    for value in values:
        total = _SMOOTHING * total + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        result.append(total / weight)
    return result


def summary(content: Mapping[str, Any]) -> str:
    """The metric, one line for each set of items, and what it was before."""
    lines = []
    parts = signal_parts(content)
    for name, part in parts.items():
        whose = f"{name} " if len(parts) > 1 else ""
        metric, before = part["metric"], part["before"]
        lines.append(
            f"{whose}before: {metric}{_by_prefix(before[metric])} {_figures(before[metric])}"
        )
        for judged, result in part["results"].items():
            lines.append(
                f"{whose}{judged.replace('_', '-')} {metric}{_by_prefix(result[metric])} "
                f"({result['items']} items): {_figures(result[metric])}"
            )
    lines += [
        f"signal {name} changed by {change['mean_change']:.3g} on average, "
        f"{change['relative']:.3g} of its spread"
        for name, change in content["others"].items()
    ]
    for name, one in content["also_tested"].items():
        metric = one["metric"]
        before, after = (one[when][metric] for when in ("before", "after"))
        about = f"signal {name} {metric}{_by_prefix(before)} ({one['items']} items)"
        if one["same"]:
            lines.append(f"{about}: {_figures(after)}, before and after, bit for bit")
        else:
            lines.append(f"{about}: {_figures(before)} before, {_figures(after)} after")
    return "\n".join(lines)


def _by_prefix(metrics: Mapping[str, float]) -> str:
    return " by prefix" if _PREFIXES[0] in metrics else ""


def _figures(values: Mapping[str, float]) -> str:
    return "  ".join(f"{k}{'%' if k in _PREFIXES else ''} {v:.3f}" for k, v in values.items())
