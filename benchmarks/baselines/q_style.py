"""A Q-style reward model (RAD-Q, FaRMA): one row of it scores all next tokens.

The reward model reads the last token behind its own cache, as the base does, and has one output for
each token that may come next. Two forward passes of one row each, whatever k is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.baselines.model import Model, add, best


def q_style(
    base: Model, reward: Model, prompt: Sequence[int], *, k: int, weight: float
) -> Iterator[int]:
    """Yield the best token among the k candidates each time, without end.

    Args:
        base: The language model.
        reward: Scores every next token: ``[B, V]``.
        prompt: Token ids.
        k: Candidates per token.
        weight: Of the reward.
    """
    logits, cache = base.read(None, [prompt])
    rewards, kept = reward.read(None, [prompt])
    while True:
        candidates = best(logits[0], k)
        scores = add(logits[0, candidates], rewards[0, candidates], weight)
        token = int(candidates[np.argmax(scores)])
        yield token
        logits, cache = base.read(cache, [[token]])
        rewards, kept = reward.read(kept, [[token]])
