"""A picture of a benchmark: speed by the number of requests, and shares of operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from otter_export.evaluation.reward_plot import check_plot_path
from otter_export.files import replacing

#: Operators that get a bar of their own.
_SHOWN = 10


def plot_benchmark(
    path: Path, speeds: Sequence[Mapping[str, Any]], operators: Sequence[Mapping[str, Any]] | None
) -> None:
    """Draw tokens per second over requests, and the shares of the operators if there are any.

    Args:
        path: A ``.png``, ``.svg`` or ``.pdf`` file; it appears when it is complete.
        speeds: Rows with ``method``, ``requests`` and ``tokens_per_second``.
        operators: Rows with ``name``, ``share`` and ``channel``.

    Raises:
        RequestError, MissingDependencyError: As `check_plot_path`.
    """
    check_plot_path(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10 if operators else 6, 4), dpi=100, layout="constrained")
    panels = figure.subplots(1, 2 if operators else 1, squeeze=False)[0]
    _speeds(panels[0], speeds)
    if operators:
        _operators(panels[1], operators[:_SHOWN])
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower())


def _speeds(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    for name in dict.fromkeys(row["method"] for row in rows):
        own = sorted((r["requests"], r["tokens_per_second"]) for r in rows if r["method"] == name)
        axes.plot(*zip(*own, strict=True), marker="o", label=name)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("concurrent requests")
    axes.set_ylabel("tokens per second, all together")
    axes.set_ylim(bottom=0)
    axes.legend()


def _operators(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    names = [row["name"] for row in rows][::-1]
    channel = [100 * row["share"] * row["channel"] for row in rows][::-1]
    base = [100 * row["share"] * (1 - row["channel"]) for row in rows][::-1]
    axes.barh(names, base, label="base")
    axes.barh(names, channel, left=base, label="channel")
    axes.set_xlabel("% of the time of a plain step")
    axes.legend()
