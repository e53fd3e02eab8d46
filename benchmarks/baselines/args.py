"""ARGS as published (Khanov et al., arXiv 2402.01694): the reward model reads every text anew.

At each token, the k best candidates are each put behind the text so far, and the reward model reads
the k texts from their first token on. The score is logit + weight * reward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.baselines.model import Model, add, best


def args(
    base: Model, reward: Model, prompt: Sequence[int], *, k: int, weight: float
) -> Iterator[int]:
    """Yield the tokens of ARGS greedy, without end.

    Args:
        base: The language model; its KV cache is kept, as every library does.
        reward: Scores a whole text; its cache is thrown away.
        prompt: Token ids.
        k: Candidates per token.
        weight: Of the reward.
    """
    text = list(prompt)
    logits, cache = base.read(None, [text])
    while True:
        candidates = best(logits[0], k)
        rewards, _ = reward.read(None, [[*text, int(token)] for token in candidates])
        token = int(candidates[np.argmax(add(logits[0, candidates], rewards, weight))])
        yield token
        text.append(token)
        logits, cache = base.read(cache, [[token]])
