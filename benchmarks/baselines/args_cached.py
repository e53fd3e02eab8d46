"""ARGS with a KV cache in the reward model too, as its authors' code runs it.

The reward model's cache is copied for each of the k candidates, which are read as a batch of k rows
of one token; the winner's copy is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from benchmarks.baselines.model import Array, Model, add, best


def args_cached(
    base: Model,
    reward: Model,
    prompt: Sequence[int],
    *,
    k: int,
    weight: float,
    used: Callable[[Array], Array] = lambda rewards: rewards,
) -> Iterator[int]:
    """Yield the tokens of ARGS greedy, without end.

    Args:
        base: The language model.
        reward: Scores the text that it has read.
        prompt: Token ids.
        k: Candidates per token.
        weight: Of the reward.
        used: What is added of the rewards ``[k]``.
    """
    logits, cache = base.read(None, [prompt])
    _, kept = reward.read(None, [prompt])
    while True:
        candidates = best(logits[0], k)
        copies = reward.rows(kept, [0] * len(candidates))
        rewards, after = reward.read(copies, candidates[:, None].tolist())
        winner = int(np.argmax(add(logits[0, candidates], used(rewards), weight)))
        token = int(candidates[winner])
        yield token
        kept = reward.rows(after, [winner])
        logits, cache = base.read(cache, [[token]])
