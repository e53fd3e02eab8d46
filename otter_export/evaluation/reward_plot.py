"""Reward per generated token, guided against unguided, as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from otter_export.errors import MissingDependencyError, RequestError
from otter_export.files import check_writable, replacing

FORMATS = (".png", ".svg", ".pdf")


def check_plot_path(path: Path) -> None:
    """Make sure that a plot can be drawn there, before anything is computed for it.

    Raises:
        RequestError: The suffix is not a known format, or the folder does not exist.
        MissingDependencyError: matplotlib is not installed.
        OtterError: The system does not let it be written.
    """
    if path.suffix.lower() not in FORMATS:
        raise RequestError(f"cannot plot to {path}: the name must end in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise RequestError(f"cannot plot to {path}: {path.parent} is not a directory")
    check_writable(path)
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        raise MissingDependencyError("matplotlib", "plot", "drawing a plot") from None


def plot_rewards(
    path: Path, series: Mapping[str, Sequence[Sequence[float]]], signal: str = "reward"
) -> None:
    """Draw rewards over token positions and write the picture.

    Every sequence is a thin line, the mean of a series a thick one. Sequences end at different
    lengths, so the mean at a position is over those that reach it.

    Args:
        path: A ``.png``, ``.svg`` or ``.pdf`` file; it appears when it is complete.
        series: Label to the rewards of its sequences, one number a token.
        signal: Name of the signal, for the axis.

    Raises:
        RequestError, MissingDependencyError: As `check_plot_path`.
    """
    check_plot_path(path)
    # The object-oriented interface: no window system is asked for, no global state is changed.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for index, (label, sequences) in enumerate(series.items()):
        _draw(axes, f"C{index}", label, [s for s in sequences if len(s)])
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.set_xlabel("generated token")
    axes.set_ylabel(signal)
    axes.legend()
    with replacing(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower())


def mean_by_position(sequences: Sequence[Sequence[float]]) -> list[float]:
    """Mean reward at each position, over the sequences that are long enough."""
    longest = max((len(s) for s in sequences), default=0)
    return [float(np.mean([s[i] for s in sequences if i < len(s)])) for i in range(longest)]


def _draw(axes: Any, color: str, label: str, sequences: list[Sequence[float]]) -> None:
    if len(sequences) > 1:
        for sequence in sequences:
            positions = range(1, len(sequence) + 1)
            axes.plot(positions, sequence, color=color, alpha=0.25, linewidth=0.8)
    mean = mean_by_position(sequences)
    overall = np.mean([reward for s in sequences for reward in s]) if sequences else 0.0
    label = f"{label} (mean {overall:+.3f})"
    axes.plot(range(1, len(mean) + 1), mean, color=color, linewidth=2, label=label)
