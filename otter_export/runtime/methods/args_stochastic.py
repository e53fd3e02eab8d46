"""``args-stochastic``: sample among the candidates by reward-weighted score."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from otter_export.arguments import keep, number
from otter_export.runtime.engine import FloatArray, IntArray
from otter_export.runtime.methods.base import ScoreArray
from otter_export.runtime.methods.guided import GuidedMethod
from otter_export.runtime.sampler import nucleus, sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArgsStochastic(GuidedMethod):
    """Sample from ``softmax((logit + weight * reward) / temperature)`` over the k best next tokens.

    Weight 0 is `Plain` sampling with the same ``top_k``, ``temperature``, ``top_p`` and seed, token
    for token.

    Args:
        temperature: Above 0.
        top_p: Above 0, at most 1: of those k the smallest set that holds at least this much of
            their probability without rewards.

    Raises:
        RequestError: An option is out of range.
    """

    name: ClassVar[str] = "args-stochastic"
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        keep(
            self,
            temperature=number("temperature", self.temperature, above=0),
            top_p=number("top_p", self.top_p, above=0, maximum=1),
        )

    @property
    def samples(self) -> bool:
        """Always."""
        return True

    def candidates(self, logits: FloatArray) -> IntArray:
        """The nucleus of the k best."""
        return nucleus(logits, super().candidates(logits), self.temperature, self.top_p)

    def choose(self, scores: ScoreArray, generator: np.random.Generator) -> int:
        """One draw from the softmax of the scores."""
        return sample(scores, self.temperature, generator)
