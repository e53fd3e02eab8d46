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
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    # The difference comes first: a tiny temperature then gives 0 and -inf, never inf - inf.
    with np.errstate(over="ignore"):
        weights = np.exp((ranked - ranked[0]) / temperature)
    cumulative = np.cumsum(weights)
    if top_p < 1:
        size = int(np.searchsorted(cumulative, top_p * cumulative[-1])) + 1
        cumulative = cumulative[:size]
    draw = generator.random() * cumulative[-1]
    # random() is below 1, but its product can round up to the total.
    index = min(int(np.searchsorted(cumulative, draw, side="right")), len(cumulative) - 1)
    return int(order[index])
