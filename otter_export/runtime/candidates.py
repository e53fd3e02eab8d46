"""Which next tokens are candidates: the k best logits, and which of them cannot win."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from otter_export.errors import EngineError
from otter_export.runtime.engine import FloatArray, IntArray
from otter_export.runtime.methods.base import DecodingMethod

#: Parts of the vocabulary whose best logits are compared first.
_PARTS = 256


def top_candidates(logits: FloatArray, count: int | None) -> IntArray:
    """Token ids of the ``count`` best logits, best first; of equal logits the lower id first.

    Fewer come back only if fewer logits are above minus infinity.

    Args:
        logits: ``[V]``.
        count: Wanted number; None takes all, in the order of their ids, since sorting a whole
            vocabulary would take longer than a small model's forward pass. More than V sorts all.

    Raises:
        EngineError: The engine's logits hold NaN, or no token is possible.
    """
    best = logits.max()
    if not np.isfinite(best):
        raise EngineError(
            "the engine returned logits that are NaN, infinite or all minus infinity; check it "
            "with: otter-export verify DIR"
        )
    if count is None:
        return np.flatnonzero(logits > -np.inf)
    if count == 1:
        return np.array([logits.argmax()], dtype=np.int64)
    # All ids at or above the least possible k-th best value, so that ties at the edge are cut by id
    # and not by how a partition happens to fall.
    ids = np.flatnonzero(logits >= _floor(logits, count))
    ids = ids[logits[ids] > -np.inf]
    order = np.argsort(-logits[ids], kind="stable")
    return ids[order[:count]]


def _floor(logits: FloatArray, count: int) -> np.float32:
    """A value that at least ``count`` logits reach, and few more."""
    if count >= len(logits):
        return np.float32(-np.inf)
    rows = len(logits) // _PARTS
    if rows and count <= _PARTS:
        # The k-th best of some of the logits is at most the k-th best of all: so compare the best
        # of each part, in one pass over the vocabulary.
        logits = logits[: rows * _PARTS].reshape(rows, _PARTS).max(axis=0)
    return np.float32(np.partition(logits, len(logits) - count)[len(logits) - count])


def possible_winners(
    method: DecodingMethod, logits: FloatArray, bounds: tuple[float, float]
) -> npt.NDArray[np.bool_]:
    """``[k]``: which candidates can still win under greedy selection, given the reward's bounds.

    For a score that is ``logit + weight * reward`` this keeps the logits within
    ``|weight| * (high - low)`` of the best. The bounds go through the method's own `combine`, whose
    roundings are monotone too, so the cut is exact in floating point, ties included.

    Args:
        method: A method that `DecodingMethod.prunes`.
        logits: ``[k]``, of the candidates.
        bounds: What the reward cannot leave.
    """
    low = method.combine(logits, np.full(logits.shape, bounds[0]))
    high = method.combine(logits, np.full(logits.shape, bounds[1]))
    worst_of_best = np.minimum(low, high).max()
    return np.asarray(np.maximum(low, high) >= worst_of_best)
