"""An ``expert`` pair: the tokens that each class says more often, as a naive Bayes classifier.

A side's offset of a token is the log of how often the texts of its class say it over how often
those of both classes do. That is the token's evidence of the class by itself, whatever was said
before it: what is written behind a prompt is judged by what it says, and not by what the prompt led
to expect. Both counts have a prior, of as many tokens as held-out texts like best.

These are biases, so that the channel adds nothing yet; what a token tells after which state is for
training. One reading of the texts is enough, and V numbers for each class.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from otter_export.family import BaseDimensions
from otter_export.modeling.data import LABELS, Batch
from otter_export.modeling.probes.moments import FloatMatrix
from otter_export.modeling.probes.signal_probe import Float32, SignalProbe
from otter_export.signals import Signal

#: In the order of the head's sides; see `otter_export.signals.expert`.
_SIDES = (LABELS["expert"], LABELS["anti"])
#: Priors that are tried, in tokens, the most cautious first.
_PRIORS = tuple(2.0**power for power in range(8, -4, -1))


class ExpertsProbe(SignalProbe):
    """Two sides; see `SignalProbe`."""

    objective = "experts"
    reads_state = False

    def __init__(self, signal: Signal, dimensions: BaseDimensions, model: Any) -> None:
        super().__init__(signal, dimensions, model)
        # [part, side, V]
        self._said = np.zeros((2, len(_SIDES), dimensions.vocab_size))
        self._prior = _PRIORS[0]

    def add(self, state: Tensor, batch: Batch, held_out: bool) -> None:
        """See `SignalProbe.add`."""
        for side, label in enumerate(_SIDES):
            at = batch.supervised & (batch.scores == label)[:, None]
            said = torch.bincount(batch.ids[at], minlength=self.dimensions.vocab_size)
            # A tokenizer may have tokens beyond the embedding, which no head has a row for.
            self._said[int(held_out), side] += said[: self.dimensions.vocab_size].numpy()

    def solve(self) -> None:
        """See `SignalProbe.solve`."""
        fit, held_out = self._said
        if not fit.sum(-1).all():
            raise self.too_few("texts of both classes, expert and anti")
        # A side that no held-out text is of has no say.
        shares = held_out / np.maximum(held_out.sum(-1, keepdims=True), 1)

        def likelihood(prior: float) -> float:
            """Nats a held-out token of each side, by how often tokens come at all."""
            logs = _logs(fit, prior)
            base = fit.sum(0) / fit.sum()
            own = (shares * logs).sum(-1) - np.log((base * np.exp(logs)).sum(-1))
            return float(own[shares.any(-1)].sum())

        self._prior = max(_PRIORS, key=likelihood)

    def directions(self, most: int) -> FloatMatrix:
        """None: nothing is read of the state."""
        return np.zeros((0, self.dimensions.hidden_size))

    def head(self, rows: FloatMatrix) -> tuple[Float32, Float32]:
        """See `SignalProbe.head`."""
        bias = _logs(self._said.sum(0), self._prior).astype(np.float32)
        return np.zeros((*bias.shape, len(rows)), np.float32), bias


def _logs(said: FloatMatrix, prior: float) -> FloatMatrix:
    """Each side's log of its share of a token over that of both sides, ``[2, V]``."""
    expected = said.sum(-1, keepdims=True) * said.sum(0) / said.sum()
    return np.asarray(np.log((said + prior) / (expected + prior)), np.float64)
