"""Drawing one candidate from scores."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


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
    nucleus = _nucleus(weights, top_p) if top_p < 1 else None
    cumulative = np.cumsum(weights if nucleus is None else weights[nucleus])
    draw = generator.random() * cumulative[-1]
    # random() is below 1, but its product can round up to the total.
    index = min(int(np.searchsorted(cumulative, draw, side="right")), len(cumulative) - 1)
    return index if nucleus is None else int(nucleus[index])


def _nucleus(weights: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.int64]:
    """Indices of the nucleus, the greatest weight first; of equal ones the first first."""
    total = weights.sum()
    # What is left out here has less than 1 - top_p of the total together, so the nucleus is among
    # the rest, and a vocabulary need not be sorted. The half is for rounding.
    large = np.flatnonzero(weights >= 0.5 * (1 - top_p) * total / len(weights))
    order = large[np.argsort(-weights[large], kind="stable")]
    size = int(np.searchsorted(np.cumsum(weights[order]), top_p * total)) + 1
    return order[:size]
