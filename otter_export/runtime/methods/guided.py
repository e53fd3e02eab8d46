"""Guided methods: which rewards they add up, which candidates they allow, and the gate."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from otter_export.arguments import keep, named_numbers, number
from otter_export.errors import RequestError
from otter_export.runtime.engine import FloatArray
from otter_export.runtime.methods.base import (
    DecodingMethod,
    ScoreArray,
    add_weighted,
    top_k_option,
)

#: Logits further below the best count as this far: their share of the probability is nothing, and
#: minus infinity would give 0 * inf.
_FARTHEST = -700.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidedMethod(DecodingMethod):
    """A method whose choice rewards can change: all of them have these options.

    Args:
        top_k: Candidates per token, 1 to the vocabulary size.
        gate: In nats, 0 or more: rewards take part only where the entropy of the base's next-token
            distribution is at least this. Elsewhere the choice is the one without rewards, and
            costs what plain decoding costs. 0: always, and no entropy is computed.
        weight: Of the reward, any finite number; 0 is decoding without it, a negative weight
            lowers it.
        weights: Of several signals by name, instead of ``signal`` and ``weight``: the reward is the
            sum of each times its weight. What is reported as the reward is the first of them.
        minimum: Least values of signals by name: candidates below one of them are left out,
            unless all are.

    Raises:
        RequestError: An option is out of range.
    """

    #: Whether `top_k` may be None, for all tokens: no `value` signal can score so many.
    takes_all: ClassVar[bool] = False
    top_k: int | None = 8
    gate: float = 0.0
    weight: float = 1.0
    weights: Mapping[str, float] | None = dataclasses.field(default=None, hash=False)
    minimum: Mapping[str, float] | None = dataclasses.field(default=None, hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_k is not None or not self.takes_all:
            keep(self, top_k=top_k_option(self.top_k))
        keep(
            self,
            gate=number("gate", self.gate, minimum=0),
            weight=number("weight", self.weight),
        )
        for name in ("weights", "minimum"):
            if (given := getattr(self, name)) is not None:
                keep(self, **{name: named_numbers(name, given)})
        if self.weights is not None and (self.weight != 1 or self.signal is not None):
            raise RequestError(
                "weights name their signals; leave signal and weight out beside them"
            )

    @property
    def candidate_count(self) -> int | None:
        """`top_k`."""
        return self.top_k

    @property
    def parts(self) -> Mapping[str | None, float]:
        """The weights; one signal counts as it is, since `combine` has its weight."""
        return super().parts if self.weights is None else dict(self.weights.items())

    @property
    def floors(self) -> Mapping[str, float]:
        """`minimum`."""
        return self.minimum or {}

    @property
    def needs_rewards(self) -> bool:
        """False if no weight is another than 0 and there is no minimum."""
        weights = [self.weight] if self.weights is None else self.weights.values()
        return any(weights) or bool(self.minimum)

    def guides(self, logits: FloatArray) -> bool:
        """Whether the gate is open, for a method that needs rewards."""
        return self.needs_rewards and (self.gate == 0 or entropy(logits) >= self.gate)

    def unguided(self) -> DecodingMethod:
        """Weights of 0, no minimum."""
        if self.weights is None:
            return dataclasses.replace(self, weight=0.0, minimum=None)
        return dataclasses.replace(self, weights=dict.fromkeys(self.weights, 0.0), minimum=None)

    def combine(self, logits: npt.NDArray[Any], rewards: npt.NDArray[Any]) -> ScoreArray:
        """``logits + weight * rewards``; all ``[k]``."""
        return add_weighted(logits, rewards, self.weight)


def entropy(logits: FloatArray) -> float:
    """Entropy of ``softmax(logits)`` in nats, computed in float64.

    Args:
        logits: ``[V]``; some may be minus infinity, not all.
    """
    below = np.maximum(np.subtract(logits, logits.max(), dtype=np.float64), _FARTHEST)
    weights = np.exp(below)
    total = weights.sum()
    # No product of vectors: BLAS would give it threads, which then wait for more by spinning.
    return float(np.log(total) - (weights * below).sum() / total)
