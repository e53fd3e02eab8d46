"""``args-greedy``: the candidate with the best reward-weighted score."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from otter_export.arguments import flag, keep, number
from otter_export.runtime.methods.base import DecodingMethod, ScoreArray, add_weighted
from otter_export.runtime.methods.guided import GuidedMethod


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArgsGreedy(GuidedMethod):
    """Take the best of ``logit + weight * reward`` among the k best next tokens (ARGS greedy).

    Args:
        weight: Any finite number; 0 is plain greedy decoding, a negative weight lowers the reward.
        prune: Leave out candidates that a bounded reward cannot make win; this changes the cost,
            never the result. About one step in a hundred takes a second forward pass, because more
            of them could win than was expected.

    Raises:
        RequestError: An option is out of range.
    """

    name: ClassVar[str] = "args-greedy"
    weight: float = 1.0
    prune: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        keep(self, weight=number("weight", self.weight), prune=flag("prune", self.prune))

    @property
    def needs_rewards(self) -> bool:
        """False for weight 0, unless pruning is switched off."""
        return self.weight != 0 or not self.prune

    @property
    def prunes(self) -> bool:
        """As the field says: only the best score wins, and the score is linear in the reward."""
        return self.prune

    def unguided(self) -> DecodingMethod:
        """Weight 0."""
        return dataclasses.replace(self, weight=0.0)

    def combine(self, logits: npt.NDArray[Any], rewards: npt.NDArray[Any]) -> ScoreArray:
        """``logits + weight * rewards``; all ``[k]``."""
        return add_weighted(logits, rewards, self.weight)

    def choose(self, scores: ScoreArray, generator: np.random.Generator) -> int:
        """The best score; of equal ones the first, which has the higher logit."""
        return int(np.argmax(scores))
