"""Feeding prompts: short ones together, long ones in chunks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from otter_export.runtime.engine import Cache, Engine, Step

#: Most tokens of one forward pass over prompts, padding included. Matrix products are as fast per
#: token at 256 as at any more, and the activations of one pass stay small.
CHUNK_TOKENS = 256


def prompt_groups(lengths: Sequence[int], budget: int = CHUNK_TOKENS) -> list[list[int]]:
    """Group prompts of similar length, so that little is padding.

    Args:
        lengths: Tokens of each prompt, at least 1.
        budget: Most tokens of a group, padding included; a longer prompt is a group by itself.

    Returns:
        Indices into ``lengths``; each once.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        # The longest of a group comes first, so it sets the width.
        if groups and (len(groups[-1]) + 1) * lengths[groups[-1][0]] <= budget:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def prefill(
    engine: Engine, prompts: Sequence[Sequence[int]], chunk: int = CHUNK_TOKENS
) -> tuple[Cache, Step]:
    """Feed prompts into a new cache.

    Args:
        engine: The engine.
        prompts: Token ids, at least one each.
        chunk: Most tokens per prompt and forward pass.

    Returns:
        The cache, and the last step, whose last row belongs to the last token of every prompt.
    """
    cache = engine.new_cache(len(prompts))
    longest = max(len(prompt) for prompt in prompts)
    for start in range(0, longest, chunk):
        width = min(chunk, longest - start)
        step = _feed(engine, cache, prompts, start - longest, width)
    return cache, step


def _feed(
    engine: Engine, cache: Cache, prompts: Sequence[Sequence[int]], begin: int, width: int
) -> Step:
    """Feed the tokens from ``begin`` (negative, counted from each prompt's end) on.

    Prompts are aligned at their ends, so padding comes first and the last row is always a token.
    """
    shape = (len(prompts), width)
    input_ids = np.zeros(shape, np.int64)
    position_ids = np.zeros(shape, np.int64)
    # A padding row sees itself only; nothing else sees it.
    tree = np.broadcast_to(np.eye(width, dtype=np.bool_), (*shape, width)).copy()
    rows = []
    for b, prompt in enumerate(prompts):
        first = len(prompt) + begin
        pad = min(max(-first, 0), width)
        tokens = prompt[first + pad : first + width] if pad < width else []
        input_ids[b, pad:] = tokens
        position_ids[b, pad:] = np.arange(first + pad, first + width)
        tree[b, pad:, pad:] = np.tri(width - pad, dtype=np.bool_)
        rows.append(range(pad, width))
    step = engine.forward(cache, input_ids, position_ids, tree, 1)
    engine.commit(cache, step, rows)
    return step
