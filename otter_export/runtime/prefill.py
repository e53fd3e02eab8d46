"""Feeding prompts to an engine: tokens first, padding last, in chunks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from otter_export.runtime.engine import Cache, Engine, FloatArray, IntArray, Step

#: Most tokens of one forward pass over prompts, padding included. Matrix products are as fast per
#: token at 256 as at any more, and the activations of one pass stay small.
CHUNK_TOKENS = 256


@dataclasses.dataclass(frozen=True)
class Fed:
    """Tokens that were fed and kept.

    Args:
        step: Its row r of sequence b is that of token ``first + r`` of the sequence's part.
        first: The first token of each part that has a row.
        lengths: ``[B]``: tokens of each part; rows behind them are padding.
    """

    step: Step
    first: int
    lengths: IntArray

    @property
    def last(self) -> Step:
        """One row of logits and signals: that of each sequence's last token."""
        at = (np.arange(len(self.lengths)), np.maximum(self.lengths - 1 - self.first, 0))
        return dataclasses.replace(
            self.step,
            logits=self.step.logits[at][:, None],
            signals={name: values[at][:, None] for name, values in self.step.signals.items()},
        )

    def signals(self, b: int, start: int) -> dict[str, FloatArray]:
        """Signals of a sequence's tokens from token ``start`` of its part on, ``[n, ...]``."""
        rows = slice(start - self.first, int(self.lengths[b]) - self.first)
        return {name: values[b, rows] for name, values in self.step.signals.items()}


def feed(
    engine: Engine, cache: Cache, parts: Sequence[Sequence[int]], first: int | None = None
) -> Fed:
    """Feed the next tokens of each sequence of a cache, and keep them.

    Tokens come first and padding last, so that a token is at the same place, and rounded in the
    same way, whatever it is padded to.

    Args:
        engine: The engine.
        cache: The tokens so far.
        parts: Token ids for each sequence; some may be empty, but not all.
        first: The first token of the parts whose rows come out; the last of each always does.
    """
    lengths = np.array([len(part) for part in parts])
    width = int(lengths.max())
    shape = (len(parts), width)
    input_ids = np.zeros(shape, np.int64)
    position_ids = np.repeat(cache.lengths[:, None], width, axis=1)
    # A padding row sees the prefix and itself; nothing else sees it.
    tree = np.broadcast_to(np.eye(width, dtype=np.bool_), (*shape, width)).copy()
    for b, part in enumerate(parts):
        size = len(part)
        input_ids[b, :size] = part
        position_ids[b, :size] += np.arange(size)
        tree[b, :size, :size] = np.tri(size, dtype=np.bool_)
    begin = int(lengths[lengths > 0].min()) - 1
    begin = begin if first is None else min(begin, first)
    step = engine.forward(cache, input_ids, position_ids, tree, width - begin)
    engine.commit(cache, step, [range(size) for size in lengths])
    return Fed(step, begin, lengths)


def prefill(
    engine: Engine, prompts: Sequence[Sequence[int]], chunk: int = CHUNK_TOKENS
) -> tuple[Cache, Step]:
    """Feed prompts into a new cache, all of them together.

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
        # Counted from the ends, so that all prompts end in the last chunk.
        begins = [len(prompt) - longest + start for prompt in prompts]
        parts = [p[max(0, b) : max(0, b + chunk)] for p, b in zip(prompts, begins, strict=True)]
        step = feed(engine, cache, parts).last
    return cache, step
