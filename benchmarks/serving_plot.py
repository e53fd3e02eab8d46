"""Throughput and latency of a served engine against the number of requests at a time, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

COLORS = {"plain": "#8a6d3b", "guided": "#1f6feb"}


def draw(report: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw `benchmarks.serving.under_load`'s report.

    Args:
        report: Rows by method.
        path: The PNG.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for name, rows in report.items():
        levels = [row["concurrency"] for row in rows]
        style = {"color": COLORS.get(name), "label": name}
        axes[0].plot(levels, [row["tokens_per_second"] for row in rows], "o-", **style)
        axes[0].axhline(rows[0]["tokens_per_second"], color=COLORS.get(name), ls=":", lw=1)
        for axis, what in ((axes[1], "first_token"), (axes[2], "per_token")):
            times = [row["milliseconds"][what] for row in rows]
            axis.plot(levels, [t["p50"] for t in times], "o-", **style)
            axis.plot(levels, [t["p95"] for t in times], "--", color=COLORS.get(name), lw=1)
    titles = (
        "generated tokens per second\n(dotted: one at a time)",
        "ms to the first token\n(p50; dashed: p95)",
        "ms between tokens\n(p50; dashed: p95)",
    )
    for axis, title in zip(axes, titles, strict=True):
        axis.set_xscale("log", base=2)
        axis.set_xticks(levels, [str(level) for level in levels])
        axis.set_ylim(bottom=0)
        axis.set_xlabel("requests at a time")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)
