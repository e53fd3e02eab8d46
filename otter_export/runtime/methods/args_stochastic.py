"""``args-stochastic``: sample among the candidates by reward-weighted score."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from otter_export.arguments import keep, number
from otter_export.runtime.methods.base import DecodingMethod, ScoreArray, add_weighted
from otter_export.runtime.methods.guided import GuidedMethod
from otter_export.runtime.sampler import sample


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArgsStochastic(GuidedMethod):
    """Sample from ``softmax((logit + weight * reward) / temperature)`` over the k best next tokens.

    Weight 0 is `Plain` sampling with the same ``top_k``, ``temperature``, ``top_p`` and seed, token
    for token.

    Args:
        weight: Any finite number; a negative weight lowers the reward.
        temperature: Above 0.
        top_p: Above 0, at most 1: sample from the smallest set of candidates that holds at least
            this probability.

    Raises:
        RequestError: An option is out of range.
    """

    name: ClassVar[str] = "args-stochastic"
    weight: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        keep(
            self,
            weight=number("weight", self.weight),
            temperature=number("temperature", self.temperature, above=0),
            top_p=number("top_p", self.top_p, above=0, maximum=1),
        )

    @property
    def needs_rewards(self) -> bool:
        """False for weight 0."""
        return self.weight != 0

    def unguided(self) -> DecodingMethod:
        """Weight 0."""
        return dataclasses.replace(self, weight=0.0)

    def combine(self, logits: npt.NDArray[Any], rewards: npt.NDArray[Any]) -> ScoreArray:
        """``logits + weight * rewards``; all ``[k]``."""
        return add_weighted(logits, rewards, self.weight)

    def choose(self, scores: ScoreArray, generator: np.random.Generator) -> int:
        """One draw from the softmax of the scores."""
        return sample(scores, self.temperature, self.top_p, generator)
