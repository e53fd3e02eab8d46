"""Rewards of the prefixes of a batch, from the signals that score them, and their correlation."""

from __future__ import annotations

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
