"""`RidgeProbe`: a probe by ridge regression of something on the state."""

from __future__ import annotations

from typing import Any

from otter_export.family import BaseDimensions
from otter_export.modeling.probes.moments import FloatMatrix, Moments, best_penalty, ridge
from otter_export.modeling.probes.signal_probe import SignalProbe
from otter_export.signals import Signal


class RidgeProbe(SignalProbe):
    """Held-out texts choose the penalty, all of them the solution; see `SignalProbe`.

    Args:
        signal: See `SignalProbe`.
        dimensions: See `SignalProbe`.
        model: See `SignalProbe`.
        targets: How many numbers are regressed.
        needs: What a text has to have, for the error where there is none.

    Attributes:
        moments: Of the texts that are fitted to, and of those held out.
        penalty: After `solve`.
        all: The moments of all texts, after `solve`.
    """

    def __init__(
        self, signal: Signal, dimensions: BaseDimensions, model: Any, targets: int, needs: str
    ) -> None:
        super().__init__(signal, dimensions, model)
        self.moments = tuple(Moments.none(dimensions.hidden_size, targets) for _ in range(2))
        self._needs = needs

    def solve(self) -> None:
        """See `SignalProbe.solve`."""
        fit, held_out = self.moments
        if not fit.count or not held_out.count:
            raise self.too_few(self._needs)
        self.penalty, self.all = best_penalty(fit, held_out), fit + held_out

    def regression(self, rows: FloatMatrix) -> tuple[FloatMatrix, FloatMatrix]:
        """On ``R n``: the solution ``[d', k]`` and the constant ``[k]``."""
        seen = self.all.seen_by(rows)
        solution = ridge(seen, self.penalty)
        return solution, seen.y / seen.count - solution.T @ (seen.x / seen.count)
