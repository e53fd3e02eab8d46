"""Forward passes in the shapes that the checks compare, on any `Engine`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from otter_export.engine_io import LOGITS
from otter_export.runtime.engine import BoolArray, Cache, Engine, FloatArray, IntArray, Step

#: Output name to its rows of one sequence: ``logits [n, V]``, a signal ``[n]`` or ``[n, V]``.
Rows = Mapping[str, FloatArray]


def rows(step: Step) -> dict[str, FloatArray]:
    """All outputs of a step on one sequence."""
    return {LOGITS: step.logits[0], **{name: value[0] for name, value in step.signals.items()}}


def feed(engine: Engine, cache: Cache, tokens: Sequence[int]) -> Step:
    """Feed consecutive tokens of one sequence, wanting all rows; nothing is committed."""
    return engine.forward(cache, *consecutive(tokens, int(cache.lengths[0])), len(tokens))


def feed_and_keep(engine: Engine, cache: Cache, tokens: Sequence[int]) -> dict[str, FloatArray]:
    """Feed consecutive tokens of one sequence and commit them."""
    step = feed(engine, cache, tokens)
    engine.commit(cache, step, [range(len(tokens))])
    return rows(step)


def feed_candidates(engine: Engine, cache: Cache, tokens: Sequence[int]) -> Step:
    """Feed alternatives for one position: each sees the prefix and itself."""
    return engine.forward(cache, *candidates(tokens, int(cache.lengths[0])), len(tokens))


def consecutive(tokens: Sequence[int], start: int) -> tuple[IntArray, IntArray, BoolArray]:
    """``input_ids [1, S]``, ``position_ids [1, S]`` and ``tree [1, S, S]`` of a chunk."""
    ids = np.array([tokens], np.int64)
    positions = start + np.arange(len(tokens), dtype=np.int64)[None]
    return ids, positions, np.tri(len(tokens), dtype=np.bool_)[None]


def candidates(tokens: Sequence[int], position: int) -> tuple[IntArray, IntArray, BoolArray]:
    """The same of candidates for one position."""
    ids = np.array([tokens], np.int64)
    tree = np.eye(len(tokens), dtype=np.bool_)[None]
    return ids, np.full_like(ids, position), tree


def chunks(tokens: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    """Consecutive parts of at most ``size`` tokens."""
    return (tokens[start : start + size] for start in range(0, len(tokens), size))


def stack(parts: Sequence[Rows]) -> dict[str, FloatArray]:
    """Rows of several steps, one after another."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
