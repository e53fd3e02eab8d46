"""`Objective`: a loss over a batch, and the metric that judges held-out items."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from torch import Tensor

from otter_export.checkpoint import Checkpoint
from otter_export.modeling.data import Batch
from otter_export.modeling.otter_model import OtterModel, OtterOutput
from otter_export.modeling.training_config import TrainingConfig
from otter_export.signals import Signal

#: What an objective notes of held-out items: arrays by name, the first axis counts items or rows.
Judged = dict[str, npt.NDArray[Any]]
#: The head that learns, as it is stored: ``[..., d']`` to ``[..., *head_dims]``.
Head = Callable[[Tensor], Tensor]


class Objective(abc.ABC):
    """A loss, and a metric; each is a frozen dataclass of its settings.

    Attributes:
        metric: Name of the metric; more is better.
        needs_logits: Whether it reads the base's logits.
        keeps_channel: Whether the head alone may learn.
    """

    metric: ClassVar[str]
    needs_logits: ClassVar[bool] = False
    keeps_channel: ClassVar[bool] = False

    @classmethod
    @abc.abstractmethod
    def of(cls, checkpoint: Checkpoint, config: TrainingConfig, signal: Signal) -> Self:
        """The objective for one signal of a checkpoint.

        Raises:
            UnsupportedError: The checkpoint lacks what it needs.
        """

    @property
    @abc.abstractmethod
    def reads(self) -> tuple[str, ...]:
        """Names of the signals whose outputs it reads; no others are computed."""

    @property
    def chosen(self) -> str:
        """The key of `metrics` by which the best step is chosen."""
        return "100"

    def forward(self, model: OtterModel, batch: Batch) -> OtterOutput:
        """What a batch is judged by: the base's logits, the channel, and the signals it reads."""
        output: OtterOutput = model(
            batch.ids,
            compute_logits=self.needs_logits,
            compute_signals=self.reads,
            use_cache=False,
        )
        return output

    def start(self, model: OtterModel) -> dict[str, Tensor]:
        """Tensors, by name, from which training may better begin than from what is there."""
        return {}

    @abc.abstractmethod
    def loss(self, output: OtterOutput, batch: Batch, head: Head) -> Tensor:
        """Mean loss over supervised positions, a scalar.

        Args:
            output: Of `forward`, for the batch.
            batch: Rows.
            head: Of the signal that learns.
        """

    @abc.abstractmethod
    def judge(self, output: OtterOutput, batch: Batch, head: Head, ends: bool) -> Judged:
        """What the metric needs of a batch; the parts of all batches are joined (`joined`).

        Args:
            output: See `loss`.
            batch: Held-out rows.
            head: Of the signal that learns.
            ends: Whether the last token of each response is the end token, which is not text.
        """

    @abc.abstractmethod
    def metrics(self, judged: Judged) -> dict[str, float]:
        """The metric, by what it is of: ``25`` (per cent of the text), ``end``, ``all``."""


def joined(parts: Sequence[Mapping[str, npt.ArrayLike]]) -> Judged:
    """What was noted of batches, as of one."""
    return {key: np.concatenate([np.asarray(part[key]) for part in parts]) for key in parts[0]}
