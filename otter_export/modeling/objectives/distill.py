"""``distill``: a ``q_value`` signal learns from a trained ``value`` signal of the same channel.

The label of a next token is the value of the prefix that it makes, from the same forward pass: no
labels are needed, any text will do, and guidance then costs one row a step.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import numpy as np
from torch import Tensor

from otter_export.checkpoint import Checkpoint
from otter_export.errors import UnsupportedError
from otter_export.modeling.data import Batch
from otter_export.modeling.objectives.objective import Head, Judged, Objective
from otter_export.modeling.objectives.rewards import pearson, prefix_rewards, response_rewards
from otter_export.modeling.otter_model import OtterOutput
from otter_export.modeling.training_config import TrainingConfig
from otter_export.signals import Signal


@dataclasses.dataclass(frozen=True)
class Distill(Objective):
    """Squared error between the score of each next token and the value of what it makes.

    The channel is kept as it is: the labels would move with it, and with them the value.

    Args:
        signal: The ``q_value`` signal that learns.
        teacher: The ``value`` signal.
    """

    signal: Signal
    teacher: Signal
    metric: ClassVar[str] = "pearson"
    keeps_channel: ClassVar[bool] = True

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: TrainingConfig, signal: Signal) -> Self:
        """The teacher is the one that the config names, else the checkpoint's first value."""
        values = {s.name: s for s in checkpoint.config.signals if s.kind == "value"}
        if not values:
            raise UnsupportedError(
                f"{checkpoint.directory} has no value signal that {signal.name!r} could learn from"
            )
        name = config.teacher or next(iter(values))
        if name not in values:
            raise UnsupportedError(
                f"--teacher {name!r} is no value signal of {checkpoint.directory}; accepted: "
                f"{', '.join(values)}"
            )
        _check_bounds(signal, values[name])
        return cls(signal, values[name])

    @property
    def reads(self) -> tuple[str, ...]:
        """See `Objective`."""
        return (self.signal.name, self.teacher.name)

    def loss(self, output: OtterOutput, batch: Batch, head: Head) -> Tensor:
        """See `Objective`."""
        scores, values = self._pair(output, batch)
        return (scores - values).square()[batch.supervised].mean()

    def judge(self, output: OtterOutput, batch: Batch, head: Head, ends: bool) -> Judged:
        """Score and value at each share of a row's text."""
        scores, values = (prefix_rewards(r, batch, ends) for r in self._pair(output, batch))
        return {key: np.stack([scores[key], values[key]], axis=1) for key in scores}

    def metrics(self, judged: Judged) -> dict[str, float]:
        """Pearson correlation with the value."""
        return {k: pearson(pairs[:, 0], pairs[:, 1]) for k, pairs in judged.items()}

    def _pair(self, output: OtterOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """The score and the value of each prefix, ``[R, S]``; the first score is none."""
        values = response_rewards(output, batch.ids, self.teacher).detach()
        return response_rewards(output, batch.ids, self.signal), values


def _check_bounds(signal: Signal, teacher: Signal) -> None:
    """A score that cannot reach the value's range cannot learn it."""
    if signal.bounds is None:
        return
    low, high = teacher.bounds or (-np.inf, np.inf)
    if low < signal.bounds[0] or high > signal.bounds[1]:
        given = "no bounds" if teacher.bounds is None else f"the bounds {list(teacher.bounds)}"
        raise UnsupportedError(
            f"signal {signal.name!r} stays in {list(signal.bounds)}, and its teacher "
            f"{teacher.name!r} has {given}; add a signal with activation identity"
        )
