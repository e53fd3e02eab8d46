"""``regression``: the reward of every prefix of a text learns the score of the whole text."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import numpy as np
from torch import Tensor

from otter_export.checkpoint import Checkpoint
from otter_export.modeling.data import Batch
from otter_export.modeling.objectives.objective import Head, Judged, Objective
from otter_export.modeling.objectives.rewards import pearson, prefix_rewards, response_rewards
from otter_export.modeling.otter_model import OtterOutput
from otter_export.modeling.training_config import TrainingConfig
from otter_export.signals import Signal


@dataclasses.dataclass(frozen=True)
class Regression(Objective):
    """Squared error between the reward of every prefix and the score of the whole text.

    Args:
        signal: A ``value`` or ``q_value`` signal.
    """

    signal: Signal
    metric: ClassVar[str] = "pearson"

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: TrainingConfig, signal: Signal) -> Self:
        """See `Objective`."""
        return cls(signal)

    @property
    def reads(self) -> tuple[str, ...]:
        """See `Objective`."""
        return (self.signal.name,)

    def loss(self, output: OtterOutput, batch: Batch, head: Head) -> Tensor:
        """See `Objective`."""
        rewards = response_rewards(output, batch.ids, self.signal)
        error = (rewards - batch.scores[:, None]).square()
        return error[batch.supervised].mean()

    def judge(self, output: OtterOutput, batch: Batch, head: Head, ends: bool) -> Judged:
        """The reward at each share of a row's text, and its score."""
        rewards = response_rewards(output, batch.ids, self.signal)
        noted = prefix_rewards(rewards, batch, ends) | {"score": batch.scores.tolist()}
        return {key: np.asarray(values) for key, values in noted.items()}

    def metrics(self, judged: Judged) -> dict[str, float]:
        """Pearson correlation with the scores."""
        return {k: pearson(r, judged["score"]) for k, r in judged.items() if k != "score"}
