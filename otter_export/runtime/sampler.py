"""Choosing among next tokens: the best logits, which of them cannot win, and drawing one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from otter_export.errors import EngineError
from otter_export.runtime.engine import BoolArray, FloatArray, IntArray

#: Scores are computed in float64, so that adding a reward never makes or breaks a tie by rounding.
ScoreArray = npt.NDArray[np.float64]
#: `DecodingMethod.combine`.
Combine = Callable[[FloatArray, ScoreArray], ScoreArray]
#: Least and greatest rewards: of all candidates, or ``[k]``.
Range = tuple[float | ScoreArray, float | ScoreArray]
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


def nucleus(logits: FloatArray, ids: IntArray, temperature: float, top_p: float) -> IntArray:
    """The smallest set of best candidates that holds at least ``top_p`` of their probability.

    Args:
        logits: ``[V]``.
        ids: ``[k]``: the candidates.
        temperature: Above 0: the probability is ``softmax(logits / temperature)`` over them.
        top_p: Above 0, at most 1; 1 returns ``ids`` as they are.

    Returns:
        Token ids, best first, at least one; of equal logits in the order of ``ids``.
    """
    if top_p >= 1:
        return ids
    scores = np.asarray(logits[ids], np.float64)
    weights = _weights(scores, temperature)
    total = weights.sum()
    # What is left out here has less than 1 - top_p of the total together, so the nucleus is among
    # the rest, and a vocabulary need not be sorted. The half is for rounding.
    large = np.flatnonzero(weights >= 0.5 * (1 - top_p) * total / len(weights))
    order = large[np.argsort(-scores[large], kind="stable")]
    size = int(np.searchsorted(np.cumsum(weights[order]), top_p * total)) + 1
    return ids[order[:size]]


def score_range(
    combine: Combine, logits: FloatArray, rewards: Range
) -> tuple[ScoreArray, ScoreArray]:
    """Least and greatest score of each candidate, both ``[k]``.

    Args:
        combine: That of a method that `DecodingMethod.prunes`. Its roundings are monotone in the
            reward too, so the range is exact in floating point.
        logits: ``[k]``, of the candidates.
        rewards: Least and greatest reward, of each candidate or of all.
    """
    low, high = (combine(logits, np.broadcast_to(end, logits.shape)) for end in rewards)
    return np.minimum(low, high), np.maximum(low, high)


def possible_winners(
    combine: Combine,
    logits: FloatArray,
    bounds: Range,
    expected: Range | None = None,
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


def sample(scores: ScoreArray, temperature: float, generator: np.random.Generator) -> int:
    """Index drawn from ``softmax(scores / temperature)``.

    Exactly one number is drawn, whatever the scores are.

    Args:
        scores: ``[k]``, finite.
        temperature: Above 0.
        generator: Source of the draw.
    """
    cumulative = np.cumsum(_weights(scores, temperature))
    draw = generator.random() * cumulative[-1]
    # random() is below 1, but its product can round up to the total.
    return min(int(np.searchsorted(cumulative, draw, side="right")), len(cumulative) - 1)


def _weights(scores: ScoreArray, temperature: float) -> ScoreArray:
    # The difference comes first: a tiny temperature then gives 0 and -inf, never inf - inf.
    with np.errstate(over="ignore"):
        return np.asarray(np.exp((scores - scores.max()) / temperature))
