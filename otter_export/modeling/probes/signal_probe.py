"""`SignalProbe`: how data give a signal its beginning; a file for each kind that has one."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from otter_export.errors import ConfigError
from otter_export.family import BaseDimensions
from otter_export.modeling.data import Batch
from otter_export.modeling.probes.moments import FloatMatrix
from otter_export.signals import Signal

Float32 = npt.NDArray[np.float32]


class SignalProbe(abc.ABC):
    """Sums over texts, from which directions of the state, and a head on them, follow.

    Args:
        signal: Of which kind it is.
        dimensions: Of the base.
        model: The base, as a causal language model of transformers; None where no state is read.

    Attributes:
        objective: Whose data it is fitted to.
        is_wide: Whether it has a use for as many directions as it is given, and not for one alone.
        reads_state: Whether it needs the base's states, which take a pass over all texts.
    """

    objective: ClassVar[str]
    is_wide: ClassVar[bool] = True
    reads_state: ClassVar[bool] = True

    def __init__(self, signal: Signal, dimensions: BaseDimensions, model: Any) -> None:
        self.signal = signal
        self.dimensions = dimensions
        self.model = model

    @abc.abstractmethod
    def add(self, state: Tensor, batch: Batch, held_out: bool) -> None:
        """Take texts in.

        Args:
            state: The base's final state, float32 ``[R, S, d]``; anything if it is not read.
            batch: Its texts.
            held_out: Whether they choose how much is believed of the others.
        """

    @abc.abstractmethod
    def solve(self) -> None:
        """Choose what held-out texts choose; all texts have been taken in.

        Raises:
            ConfigError: They are too few or too short.
        """

    @abc.abstractmethod
    def directions(self, most: int) -> FloatMatrix:
        """What R has to span, ``[n, d]`` with n at most ``most``, the most important first."""

    @abc.abstractmethod
    def head(self, rows: FloatMatrix) -> tuple[Float32, Float32]:
        """Weight ``[*head_dims, d']`` and bias ``[*head_dims]`` of the signal on ``R n``.

        Args:
            rows: R, ``[d', d]``.
        """

    def too_few(self, needs: str) -> ConfigError:
        """What to raise where there is nothing to fit to."""
        return ConfigError(
            f"the texts are too few or too short to fit the signal {self.signal.name!r}; it needs "
            f"{needs}"
        )
