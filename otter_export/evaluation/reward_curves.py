"""Reward against fluency: curves over the weights, one for each engine, method and top-k.

Fluency is measured twice: by the perplexity of the texts under the base, and by their diversity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from otter_export.evaluation.reward_plot import check_plot_path
from otter_export.files import replacing

_PANELS = {"perplexity": "perplexity under the base", "diversity": "diversity"}
REWARD = "reward_mean"


def plot_curves(path: Path, arms: Sequence[Mapping[str, Any]]) -> None:
    """Draw the arms of `Evaluation.to_json` that have rewards.

    Args:
        path: A ``.png``, ``.svg`` or ``.pdf`` file; it appears when it is complete.
        arms: The arms.

    Raises:
        RequestError, MissingDependencyError: As `check_plot_path`.
    """
    check_plot_path(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), dpi=110, layout="constrained")
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    for axes, (metric, name) in zip(panels, _PANELS.items(), strict=True):
        for index, (label, curve) in enumerate(curves(arms).items()):
            _draw(axes, f"C{index % 10}", label, curve, metric)
        axes.set_xlabel(name)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("mean reward, 95 % interval over prompts")
    panels[0].legend(fontsize=7)
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower())


def curves(arms: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Arms that differ by their weight alone, in its order, by what they share."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for arm in arms:
        if REWARD in arm["metrics"]:
            label = f"{arm['engine']}: {arm['way'].partition(', weight')[0]}"
            found.setdefault(label, []).append(arm)
    for curve in found.values():
        curve.sort(key=lambda arm: float(arm["method"].get("weight") or 0.0))
    return found


def _draw(
    axes: Any, color: str, label: str, curve: Sequence[Mapping[str, Any]], metric: str
) -> None:
    x = [arm["metrics"][metric]["mean"] for arm in curve]
    rewards = [arm["metrics"][REWARD] for arm in curve]
    y = [reward["mean"] for reward in rewards]
    below = [reward["mean"] - reward["low"] for reward in rewards]
    above = [reward["high"] - reward["mean"] for reward in rewards]
    # A point alone is often that of plain decoding, under a curve's point of weight 0.
    style: dict[str, Any] = {"fmt": "o-"} if len(curve) > 1 else {"fmt": "*", "ms": 14, "zorder": 1}
    axes.errorbar(x, y, [below, above], color=color, label=label, capsize=2, **style)
    for arm, *at in zip(curve, x, y, strict=True):
        weight = arm["method"].get("weight")
        if weight is not None:
            axes.annotate(f"{weight:g}", at, xytext=(4, 4), textcoords="offset points", fontsize=7)
