"""A ``value``: ridge regression of the score on the state, at every supervised token."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from otter_export.modeling.data import Batch
from otter_export.modeling.probes.moments import FloatMatrix, Moments, best_penalty, ridge
from otter_export.modeling.probes.signal_probe import Float32, SignalProbe
from otter_export.signals import Signal

#: Slope and centre of an activation, by which a score becomes the head's output before it.
_LINEAR = {"identity": (1.0, 0.0), "tanh": (1.0, 0.0), "sigmoid": (4.0, 0.5)}


class ValueProbe(SignalProbe):
    """One direction; see `SignalProbe`."""

    objective = "regression"
    is_wide = False

    def __init__(self, signal: Signal, model: Any) -> None:
        super().__init__(signal, model)
        d = model.get_output_embeddings().weight.shape[1]
        self._fit, self._held_out = Moments.none(d, 1), Moments.none(d, 1)
        self._penalty = 0.0

    def add(self, state: Tensor, batch: Batch, held_out: bool) -> None:
        """See `SignalProbe.add`."""
        slope, centre = _LINEAR[self.signal.activation]
        scores = ((batch.scores - centre) * slope)[:, None].expand_as(batch.supervised)
        moments = self._held_out if held_out else self._fit
        moments.add(state[batch.supervised], scores[batch.supervised][:, None])

    def solve(self) -> None:
        """See `SignalProbe.solve`."""
        if not self._fit.count or not self._held_out.count:
            raise self.too_few("a text of at least one token in each part")
        self._penalty = best_penalty(self._fit, self._held_out)
        self._all = self._fit + self._held_out

    def directions(self, most: int) -> FloatMatrix:
        """See `SignalProbe.directions`."""
        return ridge(self._all, self._penalty).T[:most]

    def head(self, rows: FloatMatrix) -> tuple[Float32, Float32]:
        """See `SignalProbe.head`."""
        seen = self._all.seen_by(rows)
        solution = ridge(seen, self._penalty)  # [d', 1]
        constant = seen.y / seen.count - solution.T @ (seen.x / seen.count)
        return solution.T.astype(np.float32), constant.astype(np.float32)
