"""Training objectives: losses, and the metrics that judge them; the same for all signal kinds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from otter_export.errors import UnsupportedError
from otter_export.modeling.data import Batch
from otter_export.modeling.otter_model import OtterOutput
from otter_export.signals import Signal

#: Shares of the response at which held-out metrics are reported.
PREFIXES = (25, 50, 75, 100)
#: Log-odds of the largest difference that a bounded signal can express, in `Pairwise`.
_MAX_LOG_ODDS = 6.0


def response_rewards(output: OtterOutput, ids: Tensor, signal: Signal) -> Tensor:
    """The reward of the prefix that ends at each token.

    Args:
        output: Of one forward pass over ``ids``.
        ids: int64 ``[B, S]``.
        signal: A ``value`` signal scores the prefix that ends at t in row t; a ``q_value`` signal
            scores it in row t-1, under the id of token t.

    Returns:
        float32 ``[B, S]``. The first column of a ``q_value`` signal is zero: no row precedes it.

    Raises:
        UnsupportedError: The signal does not score prefixes.
    """
    values = output.signals[signal.name]
    if signal.kind == "value":
        return values.float()
    if signal.kind == "q_value":
        made = values[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
        return functional.pad(made.float(), (1, 0))
    raise UnsupportedError(
        f"signal {signal.name!r} is of kind {signal.kind!r}; value and q_value signals can be "
        "trained as rewards"
    )


class Objective(Protocol):
    """A loss over all prefixes of a batch, and a held-out metric over chosen prefixes."""

    metric: str

    def loss(self, rewards: Tensor, batch: Batch) -> Tensor:
        """Mean loss over supervised positions; ``rewards`` is float32 ``[R, S]``."""

    def metrics(self, evaluated: Evaluated) -> dict[str, float]:
        """Metric by prefix: keys ``25``, ``50``, ``75``, ``100`` (per cent) and ``end``."""


@dataclasses.dataclass(frozen=True)
class Evaluated:
    """Held-out rewards: for each prefix share, one value per row; and the rows' scores."""

    rewards: Mapping[str, npt.NDArray[np.float64]]
    scores: npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Regression:
    """Squared error between the reward of every prefix and the score of the whole text."""

    metric = "pearson"

    def loss(self, rewards: Tensor, batch: Batch) -> Tensor:
        """See `Objective`."""
        error = (rewards - batch.scores[:, None]).square()
        return error[batch.supervised].mean()

    def metrics(self, evaluated: Evaluated) -> dict[str, float]:
        """Pearson correlation with the scores."""
        return {k: pearson(r, evaluated.scores) for k, r in evaluated.rewards.items()}


@dataclasses.dataclass(frozen=True)
class Pairwise:
    """Bradley-Terry on prefixes of equal length, chosen against rejected.

    Where one response has ended, its final reward is compared with the prefixes of the other.

    Args:
        scale: Log-odds per unit of reward.
    """

    scale: float = 1.0
    metric = "accuracy"

    def loss(self, rewards: Tensor, batch: Batch) -> Tensor:
        """See `Objective`."""
        aligned, mask = _aligned(rewards, batch.supervised)
        difference = self.scale * (aligned[0::2] - aligned[1::2])
        return functional.softplus(-difference)[mask[0::2] | mask[1::2]].mean()

    def metrics(self, evaluated: Evaluated) -> dict[str, float]:
        """Share of pairs in which the chosen response has the higher reward; ties count half."""
        return {
            k: float(np.mean((r[0::2] > r[1::2]) + 0.5 * (r[0::2] == r[1::2])))
            for k, r in evaluated.rewards.items()
        }


def objective_for(name: str, signal: Signal) -> Objective:
    """The objective of that name for a signal: a bounded one has its range stretched."""
    if name == "regression":
        return Regression()
    if name == "pairwise":
        if signal.bounds is None:
            return Pairwise()
        return Pairwise(_MAX_LOG_ODDS / (signal.bounds[1] - signal.bounds[0]))
    raise UnsupportedError(f"unknown objective {name!r}; known: regression, pairwise")


def prefix_rewards(rewards: Tensor, batch: Batch, ends: bool) -> dict[str, list[float]]:
    """Rewards at 25, 50, 75 and 100 % of each response, and at its end token.

    Args:
        rewards: float32 ``[R, S]``.
        batch: Where the responses lie.
        ends: Whether the last token of each response is the end token, which is not text.
    """
    lengths = batch.supervised.sum(1)
    starts = batch.supervised.to(torch.int8).argmax(1)
    text = (lengths - int(ends)).clamp(min=1)
    columns = {str(p): starts + -(-text * p // 100) - 1 for p in PREFIXES}
    if ends:
        columns["end"] = starts + lengths - 1
    rows = torch.arange(len(lengths))
    return {key: rewards[rows, column].tolist() for key, column in columns.items()}


def pearson(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Pearson correlation; 0.0 where either side is constant."""
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else 0.0


def _aligned(rewards: Tensor, supervised: Tensor) -> tuple[Tensor, Tensor]:
    """Shift responses to column 0 and repeat each one's final reward; and where they lie."""
    lengths = supervised.sum(1, keepdim=True)
    starts = supervised.to(torch.int8).argmax(1, keepdim=True)
    steps = torch.arange(rewards.shape[1])[None]
    columns = starts + torch.minimum(steps, lengths - 1)
    return rewards.gather(1, columns), steps < lengths


def merged(parts: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, npt.NDArray[np.float64]]:
    """Concatenate the dictionaries of `prefix_rewards`."""
    return {
        key: np.concatenate([np.asarray(part[key], np.float64) for part in parts])
        for key in parts[0]
    }
