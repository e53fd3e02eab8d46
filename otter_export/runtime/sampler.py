"""Choosing among next tokens: the k best logits, which of them cannot win, and drawing one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from otter_export.errors import EngineError
from otter_export.runtime.engine import BoolArray, FloatArray, IntArray

#: `DecodingMethod.combine`.
Combine = Callable[[FloatArray, npt.NDArray[np.float64]], npt.NDArray[np.float64]]
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
    best = int(logits.argmax())  # of a NaN, if there is one
    if not np.isfinite(logits[best]):
        raise EngineError(
            "the engine returned logits that are NaN, infinite or all minus infinity; check it "
            "with: otter-export verify DIR"
        )
    if count is None:
        return np.flatnonzero(logits > -np.inf)
    if count == 1:
        return np.array([best], dtype=np.int64)
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


def score_range(
    combine: Combine, logits: FloatArray, rewards: tuple[float, float]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Least and greatest score of each candidate, both ``[k]``.

    Args:
        combine: That of a method that `DecodingMethod.prunes`. Its roundings are monotone in the
            reward too, so the range is exact in floating point.
        logits: ``[k]``, of the candidates.
        rewards: Least and greatest reward.
    """
    low, high = (combine(logits, np.full(logits.shape, end)) for end in rewards)
    return np.minimum(low, high), np.maximum(low, high)


def possible_winners(
    combine: Combine,
    logits: FloatArray,
    bounds: tuple[float, float],
    expected: tuple[float, float] | None = None,
) -> BoolArray:
    """``[k]``: which candidates can still win under greedy selection, given the reward's bounds.

    For a score that is ``logit + weight * reward`` this keeps the logits within
    ``|weight| * (high - low)`` of the best, ties included.

    Args:
        combine: As for `score_range`.
        logits: ``[k]``, of the candidates.
        bounds: What the reward cannot leave.
        expected: Where it is believed to lie; then those that can win if the best of them is as
            good as that. Without it the answer is certain.
    """
    _, best = score_range(combine, logits, bounds)
    worst, _ = score_range(combine, logits, expected or bounds)
    return np.asarray(best >= worst.max())


def sample(
    scores: npt.NDArray[np.float64],
    temperature: float,
    top_p: float,
    generator: np.random.Generator,
) -> int:
    """Index drawn from ``softmax(scores / temperature)``, cut to its nucleus.

    Exactly one number is drawn, whatever the scores are.

    Args:
        scores: ``[k]``, finite.
        temperature: Above 0.
        top_p: Above 0, at most 1; the nucleus is the smallest set of best scores that holds at
            least this probability, and never empty.
        generator: Source of the draw.
    """
    # The difference comes first: a tiny temperature then gives 0 and -inf, never inf - inf.
    with np.errstate(over="ignore"):
        weights = np.exp((scores - scores.max()) / temperature)
    kept = nucleus(weights, top_p) if top_p < 1 else None
    cumulative = np.cumsum(weights if kept is None else weights[kept])
    draw = generator.random() * cumulative[-1]
    # random() is below 1, but its product can round up to the total.
    index = min(int(np.searchsorted(cumulative, draw, side="right")), len(cumulative) - 1)
    return index if kept is None else int(kept[index])


def nucleus(weights: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.int64]:
    """The smallest set of the greatest weights that holds a share of their sum.

    Args:
        weights: ``[k]``, at least 0, with a sum above 0.
        top_p: The share; above 0, at most 1.

    Returns:
        Their indices, the greatest weight first; of equal ones the first first. Never empty.
    """
    total = weights.sum()
    # What is left out here has less than 1 - top_p of the total together, so the nucleus is among
    # the rest, and a vocabulary need not be sorted. The half is for rounding.
    large = np.flatnonzero(weights >= 0.5 * (1 - top_p) * total / len(weights))
    order = large[np.argsort(-weights[large], kind="stable")]
    size = int(np.searchsorted(np.cumsum(weights[order]), top_p * total)) + 1
    return order[:size]
