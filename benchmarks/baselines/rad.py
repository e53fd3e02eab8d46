"""RAD (Deng and Raffel, arXiv 2310.09520): a unidirectional reward model with cached activations.

Its work is that of ARGS with caches: k rows of one token, behind k copies of the cache. The reward
that is added is clamped to [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.baselines.args_cached import args_cached
from benchmarks.baselines.model import Model


def rad(
    base: Model, reward: Model, prompt: Sequence[int], *, k: int, weight: float
) -> Iterator[int]:
    """Yield the tokens of RAD, the best one each time instead of a sample, without end.

    Args:
        base: The language model.
        reward: Scores the text that it has read.
        prompt: Token ids.
        k: Candidates per token.
        weight: Of the reward (there: beta).
    """
    clamped = lambda rewards: np.clip(rewards, 0.0, 1.0)  # noqa: E731
    return args_cached(base, reward, prompt, k=k, weight=weight, used=clamped)
