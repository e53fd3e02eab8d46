"""A trial of the loaded model: does a token get the same numbers however many rows a step has?

Kernels are chosen by the number of rows, and some add up in another order than others: of the CPUs'
int8 products those with blocks of 128 do and those with 64 do not. No library promises either, and
it differs between processors, so the same token is run alone and beside copies of itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from otter_export.runtime.engine import FloatArray
from otter_export.runtime.executor import Executor, RowRule
from otter_export.runtime.step_inputs import Padding, Tokens, read_only_inputs

#: A pair and an odd last row.
_MOST = 3
#: Any token and any place will do; a prefix that is not zero, so that attention has what to add up.
_TOKEN, _POSITION, _SCALE = 1, 0, 0.5


def try_rows(executor: Executor) -> RowRule:
    """Run a token alone and beside others, and compare all its outputs bit for bit.

    Args:
        executor: On the host, of cache form `engine_io.READ_ONLY`.

    Raises:
        EngineError: The model fails.
    """
    slots = executor.slots(1)
    caches: Any = executor.blocks(_MOST, slots)  # arrays of the host
    generator = np.random.default_rng(0)
    for block in caches:
        block.array[:, :1] = _SCALE * generator.standard_normal(block.array[:, :1].shape)
        block.array[:, 1:] = block.array[:, :1]

    def first_row(batch: int, step: int) -> list[FloatArray]:
        """Every output of the token at the beginning of each sequence, ``[B, ...]``."""
        ids = np.full((batch, step), _TOKEN, np.int64)
        tree = np.broadcast_to(np.eye(step, dtype=np.bool_), (batch, step, step))
        tokens = Tokens(ids, np.full_like(ids, _POSITION), tree, step)
        lengths = np.full(batch, slots, np.int64)
        inputs = read_only_inputs(tokens, lengths, slots, Padding())
        rows = executor.blocks(batch, step, zeroed=False)
        return [array[:, 0] for array in executor.run(caches, inputs, rows).values()]

    alone = first_row(1, 1)

    def alike(batch: int, step: int) -> bool:
        both = zip(first_row(batch, step), alone, strict=True)
        return all(bool((beside == single).all()) for beside, single in both)

    if not alike(_MOST, 1):
        return RowRule(pairs=True, even_steps=True)
    return RowRule(pairs=False, even_steps=not (alike(1, 2) and alike(1, _MOST)))
