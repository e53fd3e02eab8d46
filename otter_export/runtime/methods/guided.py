"""Guided methods: how many candidates they have, and the gate that says where rewards take part."""

from __future__ import annotations

import dataclasses

import numpy as np

from otter_export.arguments import keep, number
from otter_export.runtime.engine import FloatArray
from otter_export.runtime.methods.base import DecodingMethod, top_k_option

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

    Raises:
        RequestError: An option is out of range.
    """

    top_k: int = 8
    gate: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        keep(self, top_k=top_k_option(self.top_k), gate=number("gate", self.gate, minimum=0))

    @property
    def candidate_count(self) -> int:
        """`top_k`."""
        return self.top_k

    @property
    def needs_rewards(self) -> bool:
        """True."""
        return True

    def guides(self, logits: FloatArray) -> bool:
        """Whether the gate is open, for a method that needs rewards."""
        return self.needs_rewards and (self.gate == 0 or entropy(logits) >= self.gate)


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
