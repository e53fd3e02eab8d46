"""Trials of the loaded model: does a token get the same numbers however many rows a step has?

Kernels are chosen by the number of rows, and some add up in another order than others: of the CPUs'
int8 products those with blocks of 128 do and those with 64 do not. No library promises either, and
it differs between processors, so the same token is run alone and beside copies of itself, and a
chain of tokens one after another and together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from otter_export import engine_io
from otter_export.runtime.engine import FloatArray
from otter_export.runtime.executor import MOST_CHAINED, Executor, RowRule
from otter_export.runtime.step_inputs import (
    Padding,
    Part,
    Tokens,
    in_place_inputs,
    read_only_inputs,
)

#: A pair and an odd last row.
_MOST = 3
#: Any token and any place will do; a prefix that is not zero, so that attention has what to add up.
_TOKEN, _POSITION, _SCALE = 1, 0, 0.5
#: Tokens before a chain; the last token of a chain of this length fills the slots of one alone.
_BEFORE_CHAIN = 24


def try_rows(executor: Executor) -> RowRule:
    """Run a token alone and beside others, and compare all its outputs bit for bit.

    Args:
        executor: On the host.

    Raises:
        EngineError: The model fails.
    """
    # A prefix that fills the slots, and in place some more for the new rows.
    prefix = executor.slots(1)
    apart = executor.cache_form == engine_io.READ_ONLY
    caches = _caches(executor, _MOST, prefix, prefix if apart else executor.slots(prefix + _MOST))

    def first_row(batch: int, step: int) -> list[FloatArray]:
        """Every output of the token at the beginning of each sequence, ``[B, ...]``."""
        ids = np.full((batch, step), _TOKEN, np.int64)
        tree = np.broadcast_to(np.eye(step, dtype=np.bool_), (batch, step, step))
        tokens = Tokens(ids, np.full_like(ids, _POSITION), tree, step)
        lengths = np.full(batch, prefix, np.int64)
        slots = caches[0].shape[3]
        if apart:
            inputs = read_only_inputs(tokens, lengths, slots, Padding())
            rows = executor.blocks(batch, step, zeroed=False)
            outputs = executor.run(caches, inputs, rows)
        else:
            inputs = in_place_inputs(tokens, Part(0, step, step), lengths, slots, Padding())
            outputs = executor.run(caches, inputs)
        return [array[:, 0] for array in outputs.values()]

    alone = first_row(1, 1)

    def alike(batch: int, step: int) -> bool:
        both = zip(first_row(batch, step), alone, strict=True)
        return all(bool((beside == single).all()) for beside, single in both)

    if not alike(_MOST, 1):
        return RowRule(pairs=True, even_steps=True)
    return RowRule(pairs=False, even_steps=not (alike(1, 2) and alike(1, _MOST)))


def try_chains(executor: Executor) -> bool:
    """Run tokens one after another and in one step, and compare outputs and rows bit for bit.

    All numbers of tokens are tried up to `MOST_CHAINED`, the even ones alone where the row rule
    wants them, and in a cache of more slots than those that are fed alone.

    Args:
        executor: On the host, of cache form `engine_io.IN_PLACE`.

    Raises:
        EngineError: The model fails.
    """
    end = _BEFORE_CHAIN + MOST_CHAINED
    # A second place for a row of padding.
    few, many = (_caches(executor, 2, _BEFORE_CHAIN, executor.slots(n)) for n in (end, end + 1))
    singles = [_chain(executor, few, _BEFORE_CHAIN + i, [i]) for i in range(MOST_CHAINED)]
    stride = 2 if executor.row_rule.even_steps else 1
    for width in range(2, MOST_CHAINED + 1, stride):
        chain = _chain(executor, many, _BEFORE_CHAIN, range(width))
        for together, *apart in zip(chain, *singles[:width], strict=True):
            if not np.array_equal(together, np.concatenate(apart)):
                return False
    stored = (
        [block.array[:, 0, :, _BEFORE_CHAIN:end] for block in blocks] for blocks in (few, many)
    )
    return all(np.array_equal(*both) for both in zip(*stored, strict=True))


def _chain(executor: Executor, caches: Any, start: int, ids: Sequence[int]) -> list[FloatArray]:
    """Every output ``[S, ...]`` of tokens that see ``start`` others and each other."""
    step = len(ids)
    tokens = Tokens(
        np.array([ids], np.int64) + _TOKEN,
        np.full((1, step), _POSITION, np.int64),
        np.tri(step, dtype=np.bool_)[None],
        step,
    )
    padding = Padding.to_pairs(1, step, step) if executor.row_rule.pairs else Padding()
    slots, lengths = caches[0].shape[3], np.array([start], np.int64)
    inputs = in_place_inputs(tokens, Part(0, step, step), lengths, slots, padding)
    asked = padding.asked(1, step)
    return [array[asked][0] for array in executor.run(caches, inputs).values()]


def _caches(executor: Executor, places: int, prefix: int, slots: int) -> Any:
    """Blocks of the host whose sequences have the same ``prefix`` rows."""
    caches: Any = executor.blocks(places, slots)
    generator = np.random.default_rng(0)
    for block in caches:
        rows = block.array[:, :, :, :prefix]
        rows[:] = _SCALE * generator.standard_normal(rows[:, :1].shape)
    return caches
