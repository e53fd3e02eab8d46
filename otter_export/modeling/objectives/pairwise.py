"""``pairwise``: of two texts, the reward of the chosen one is the higher, prefix by prefix."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from otter_export.checkpoint import Checkpoint
from otter_export.modeling.data import Batch
from otter_export.modeling.objectives.objective import Head, Judged, Objective
from otter_export.modeling.objectives.rewards import prefix_rewards, response_rewards
from otter_export.modeling.otter_model import OtterOutput
from otter_export.modeling.training_config import TrainingConfig
from otter_export.signals import Signal

#: Log-odds of the largest difference that a bounded signal can express.
_MAX_LOG_ODDS = 6.0


@dataclasses.dataclass(frozen=True)
class Pairwise(Objective):
    """Bradley-Terry on prefixes of equal length, chosen against rejected.

    Where one response has ended, its final reward is compared with the prefixes of the other.

    Args:
        signal: A ``value`` or ``q_value`` signal.
        scale: Log-odds per unit of reward.
    """

    signal: Signal
    scale: float = 1.0
    metric: ClassVar[str] = "accuracy"

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: TrainingConfig, signal: Signal) -> Self:
        """A bounded signal has its range stretched."""
        if signal.bounds is None:
            return cls(signal)
        return cls(signal, _MAX_LOG_ODDS / (signal.bounds[1] - signal.bounds[0]))

    @property
    def reads(self) -> tuple[str, ...]:
        """See `Objective`."""
        return (self.signal.name,)

    def loss(self, output: OtterOutput, batch: Batch, head: Head) -> Tensor:
        """See `Objective`."""
        rewards = response_rewards(output, batch.ids, self.signal)
        aligned, mask = _aligned(rewards, batch.supervised)
        difference = self.scale * (aligned[0::2] - aligned[1::2])
        return functional.softplus(-difference)[mask[0::2] | mask[1::2]].mean()

    def judge(self, output: OtterOutput, batch: Batch, head: Head, ends: bool) -> Judged:
        """The reward at each share of a row's text; rows come as chosen, rejected, ..."""
        rewards = response_rewards(output, batch.ids, self.signal)
        return {k: np.asarray(r) for k, r in prefix_rewards(rewards, batch, ends).items()}

    def metrics(self, judged: Judged) -> dict[str, float]:
        """Share of pairs in which the chosen response has the higher reward; ties count half."""
        return {
            k: float(np.mean((r[0::2] > r[1::2]) + 0.5 * (r[0::2] == r[1::2])))
            for k, r in judged.items()
        }


def _aligned(rewards: Tensor, supervised: Tensor) -> tuple[Tensor, Tensor]:
    """Shift responses to column 0 and repeat each one's final reward; and where they lie."""
    lengths = supervised.sum(1, keepdim=True)
    starts = supervised.to(torch.int8).argmax(1, keepdim=True)
    steps = torch.arange(rewards.shape[1])[None]
    columns = starts + torch.minimum(steps, lengths - 1)
    return rewards.gather(1, columns), steps < lengths
