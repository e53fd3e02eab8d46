"""``args-greedy``: the candidate with the best reward-weighted score."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from otter_export.arguments import flag, keep
from otter_export.runtime.methods.base import ScoreArray
from otter_export.runtime.methods.guided import GuidedMethod


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArgsGreedy(GuidedMethod):
    """Take the best of ``logit + weight * reward`` among the k best next tokens (ARGS greedy).

    Args:
        prune: Leave out candidates that a bounded reward cannot make win; this changes the cost,
            never the result. About one step in a hundred takes a second forward pass, because more
            of them could win than was expected. With a ``minimum`` none are left out.

    Raises:
        RequestError: An option is out of range.
    """

    name: ClassVar[str] = "args-greedy"
    prune: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        keep(self, prune=flag("prune", self.prune))

    @property
    def needs_rewards(self) -> bool:
        """False for weight 0, unless pruning is switched off."""
        return super().needs_rewards or not self.prune

    @property
    def prunes(self) -> bool:
        """As the field says: only the best score wins, and the score is linear in the reward.

        Below a minimum the best score does not win, so bounds of scores then say nothing.
        """
        return self.prune and not self.minimum

    def choose(self, scores: ScoreArray, generator: np.random.Generator) -> int:
        """The best score; of equal ones the first, which has the higher logit."""
        return int(np.argmax(scores))
