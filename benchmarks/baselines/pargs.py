"""PARGS (Rashid et al., 2024): a reward model of partial texts, read one candidate after another.

Each of the k texts is read from its first token on by a forward pass of its own, and the score is
log-probability + weight * reward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.baselines.model import Model, add, best


def pargs(
    base: Model, reward: Model, prompt: Sequence[int], *, k: int, weight: float
) -> Iterator[int]:
    """Yield the best token among the k candidates each time, without end.

    Args:
        base: The language model; its KV cache is kept.
        reward: Scores a whole text.
        prompt: Token ids.
        k: Candidates per token.
        weight: Of the reward.
    """
    text = list(prompt)
    logits, cache = base.read(None, [text])
    while True:
        candidates = best(logits[0], k)
        rewards = np.array([reward.read(None, [[*text, int(t)]])[0][0] for t in candidates])
        # Unshifted exponentials of logits above 700 are infinite.
        shifted = logits[0].astype(np.float64) - logits[0].max()
        likely = shifted - np.log(np.exp(shifted).sum())
        token = int(candidates[np.argmax(add(likely[candidates], rewards, weight))])
        yield token
        text.append(token)
        logits, cache = base.read(cache, [[token]])
