"""A ``value``: ridge regression of the score on the state, at every supervised token."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from otter_export.family import BaseDimensions
from otter_export.modeling.data import Batch
from otter_export.modeling.probes.moments import FloatMatrix, ridge
from otter_export.modeling.probes.ridge_probe import RidgeProbe
from otter_export.modeling.probes.signal_probe import Float32
from otter_export.signals import Signal

#: Slope and centre of an activation, by which a score becomes the head's output before it.
_LINEAR = {"identity": (1.0, 0.0), "tanh": (1.0, 0.0), "sigmoid": (4.0, 0.5)}


class ValueProbe(RidgeProbe):
    """One direction; see `SignalProbe`."""

    objective = "regression"
    is_wide = False

    def __init__(self, signal: Signal, dimensions: BaseDimensions, model: Any) -> None:
        super().__init__(signal, dimensions, model, 1, "a text of at least one token in each part")

    def add(self, state: Tensor, batch: Batch, held_out: bool) -> None:
        """See `SignalProbe.add`."""
        slope, centre = _LINEAR[self.signal.activation]
        scores = ((batch.scores - centre) * slope)[:, None].expand_as(batch.supervised)
        self.moments[held_out].add(state[batch.supervised], scores[batch.supervised][:, None])

    def directions(self, most: int) -> FloatMatrix:
        """See `SignalProbe.directions`."""
        return ridge(self.all, self.penalty).T[:most]

    def head(self, rows: FloatMatrix) -> tuple[Float32, Float32]:
        """See `SignalProbe.head`."""
        solution, constant = self.regression(rows)
        return solution.T.astype(np.float32), constant.astype(np.float32)
