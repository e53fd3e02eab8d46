"""Greedy decoding of the base with its KV cache: what every method's extra time is counted from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from benchmarks.baselines.model import Model


def plain(base: Model, prompt: Sequence[int]) -> Iterator[int]:
    """Yield the best next tokens, without end.

    Args:
        base: The language model.
        prompt: Token ids.
    """
    logits, cache = base.read(None, [prompt])
    while True:
        token = int(np.argmax(logits[0]))
        yield token
        logits, cache = base.read(cache, [[token]])
