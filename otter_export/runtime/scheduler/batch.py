"""Sequences that are decoded together: they join, take steps, and leave."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection

import numpy as np

from otter_export.runtime.drafts.row_costs import row_costs
from otter_export.runtime.engine import BoolArray, Engine, IntArray
from otter_export.runtime.request import TokenEvent
from otter_export.runtime.scheduler.sequence import Sequence


class Batch:
    """Runs one forward pass per step for all its sequences.

    Every sequence brings its own prompt length, method, candidates, limits and random generator, so
    a result does not depend on what else is in the batch. After an error of the engine the cache
    cannot be trusted, and the batch is of no more use.

    Args:
        engine: The engine.

    Attributes:
        sequences: In the order of their rows in the cache.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._costs = row_costs(engine)
        self._cache = engine.new_cache(0)
        self.sequences: list[Sequence] = []

    def join(self, joining: Collection[Sequence]) -> None:
        """Let sequences join whose rows are in another cache; they are copied."""
        sources = [(s.cache, s.cache_index) for s in joining if s.cache is not None]
        self._engine.append(self._cache, sources)
        for sequence in joining:
            sequence.cache, sequence.cache_index = self._cache, len(self.sequences)
            self.sequences.append(sequence)

    def leave(self, gone: Collection[Sequence]) -> None:
        """Take sequences out; the last ones move into their places."""
        kept = [s for s in self.sequences if s not in gone]
        if len(kept) == len(self.sequences):
            return
        order = self.sequences[: len(kept)]
        behind = [s for s in self.sequences[len(kept) :] if s not in gone]
        for index, sequence in enumerate(order):
            if sequence in gone:
                order[index] = behind.pop()
        self.sequences = order
        indices = [sequence.cache_index for sequence in order]
        for index, sequence in enumerate(order):
            sequence.cache_index = index
        self._engine.select(self._cache, indices)

    def step(self) -> list[TokenEvent]:
        """Generate a token for every sequence, more where drafts are right; the finished leave.

        One that finds that it has to feed more candidates (`Sequence.advance`) has its token in the
        next step.
        """
        inputs = self._inputs()
        started = time.perf_counter()
        step = self._engine.forward(self._cache, *inputs)
        batch, width = inputs[0].shape
        self._costs.record(batch, width, time.perf_counter() - started)
        events: list[TokenEvent] = []
        kept: list[list[int]] = []
        for b, sequence in enumerate(self.sequences):
            new, rows = sequence.advance(step, b)
            events += new
            kept.append([] if sequence.finish_reason or sequence.error else rows)
        self._engine.commit(self._cache, step, kept)
        self.leave({s for s in self.sequences if s.finish_reason or s.error})
        return events

    def _inputs(self) -> tuple[IntArray, IntArray, BoolArray, int]:
        """Token ids and positions ``[B, S]``, the tree ``[B, S, S]``, and S.

        Padding comes last, so that a candidate is at the same place however wide the step is.
        """
        width = max(len(sequence.fed) for sequence in self.sequences)
        # Even, and so never one where it may be more, for kernels that treat pairs of rows, or a
        # single row, in their own way: a result must not depend on who else is here.
        if self._engine.even_steps and not all(s.feeds_one for s in self.sequences):
            width += width % 2
        shape = (len(self.sequences), width)
        input_ids = np.zeros(shape, np.int64)
        position_ids = np.empty(shape, np.int64)
        tree = _each_alone(*shape)
        for b, sequence in enumerate(self.sequences):
            fed, tokens = sequence.fed, len(sequence.fed)
            input_ids[b, :tokens] = fed.tokens
            position_ids[b] = sequence.length
            if fed.deep:
                position_ids[b, :tokens] += fed.depths
                tree = tree if tree.flags.writeable else tree.copy()
                tree[b, :tokens, :tokens] = fed.seen
        return input_ids, position_ids, tree, width


@functools.lru_cache(maxsize=64)
def _each_alone(batch: int, width: int) -> BoolArray:
    """``[B, S, S]``: each token sees itself."""
    tree = np.broadcast_to(np.eye(width, dtype=np.bool_), (batch, width, width))
    return tree  # read-only, as what is cached must be
