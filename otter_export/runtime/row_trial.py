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

#: Tokens before the row of each sequence, of which there is an odd number: several, since additions
#: in another order often give the same sum, and rounding to 8 bits mostly hides a last bit.
_PREFIXES = (5, 31, 16, 8, 27)
#: Any token and any place will do; a prefix that is not zero, so that attention has what to add up.
_TOKEN, _POSITION, _SCALE = 1, 0, 0.5
#: Tokens of a step: a pair, and an odd last row.
_MOST = 3
#: Tokens before a chain; the last token of a chain of this length fills the slots of one alone.
_BEFORE_CHAIN = 24


def try_rows(executor: Executor) -> RowRule:
    """Run a token alone and beside others, and compare all its outputs bit for bit.

    Args:
        executor: On the host.

    Raises:
        EngineError: The model fails.
    """
    # In place there are slots behind the prefixes for the new rows.
    prefix = max(_PREFIXES)
    apart = executor.cache_form == engine_io.READ_ONLY
    slots = executor.slots(prefix if apart else prefix + _MOST)

    def first_rows(step: int, *sequences: int) -> list[FloatArray]:
        """Every output ``[B, ...]`` of the token at the beginning of each sequence."""
        ids = np.repeat(_TOKEN + np.array(sequences, np.int64)[:, None], step, axis=1)
        tree = np.broadcast_to(np.eye(step, dtype=np.bool_), (*ids.shape, step))
        tokens = Tokens(ids, np.full_like(ids, _POSITION), tree, step)
        lengths = np.array([_PREFIXES[b] for b in sequences], np.int64)
        # Anew: a run in place writes behind its prefix, where a longer one has rows.
        caches = _caches(executor, len(sequences), prefix, slots)
        if apart:
            inputs = read_only_inputs(tokens, lengths, slots, Padding())
            rows = executor.blocks(len(sequences), step, zeroed=False)
            outputs = executor.run(caches, inputs, rows)
        else:
            inputs = in_place_inputs(tokens, Part(0, step, step), lengths, slots, Padding())
            outputs = executor.run(caches, inputs)
        return [array[:, 0] for array in outputs.values()]

    everyone = range(len(_PREFIXES))
    each = [first_rows(1, b) for b in everyone]
    alone = [np.concatenate(rows) for rows in zip(*each, strict=True)]

    def alike(step: int, *sequences: int) -> bool:
        beside = zip(first_rows(step, *sequences), alone, strict=True)
        return all(np.array_equal(rows, one[list(sequences)]) for rows, one in beside)

    if not alike(1, *everyone):
        return RowRule(pairs=True, even_steps=True)
    groups = (everyone, [0], [1])
    steps = range(2, _MOST + 1)
    all_alike = all(alike(step, *group) for step in steps for group in groups)
    return RowRule(pairs=False, even_steps=not all_alike)


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
        np.array([ids], np.int64) + 1,
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
