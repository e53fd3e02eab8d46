"""`KVCache`: the key/value rows of a batch of sequences, in blocks of an executor's memory.

Sequence b is place b of every block; behind the last there may be free places, so that joining
copies the newcomer alone, and leaving the last one alone, into the hole.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import numpy as np

from otter_export.errors import EngineError
from otter_export.runtime.engine import IntArray
from otter_export.runtime.executor import Blocks, Executor
from otter_export.runtime.memory.block import Move, kept_moves


class KVCache:
    """The rows of a batch, and room for more.

    Args:
        executor: Whose memory it is, and who says how it grows.
        batch_size: Sequences to begin with, empty.

    Attributes:
        blocks: Of `Executor.blocks`.
        lengths: ``[B]``: slots in use.
        version: Counts changes, to recognise a step that was run on an earlier state.

    Raises:
        EngineError: The engine does not take so many, or there is no memory.
    """

    def __init__(self, executor: Executor, batch_size: int) -> None:
        self._executor = executor
        self._check_batch(batch_size)
        self.blocks = executor.blocks(self._rounded(batch_size), executor.slots(1))
        self.lengths: IntArray = np.zeros(batch_size, np.int64)
        self.version = 0
        #: Of the step that ran last, if they lie in this cache's slots and somebody holds it.
        self._scratch: weakref.ref[Rows] | None = None
        #: Memory of new rows that were kept or given up, for the next step of that shape.
        self._spare: Blocks | None = None

    @property
    def executor(self) -> Executor:
        """Who made its memory."""
        return self._executor

    @property
    def places(self) -> int:
        """Sequences that fit."""
        return self.blocks[0].shape[1]

    @property
    def slots(self) -> int:
        """Slots per sequence."""
        return self.blocks[0].shape[3]

    def append(self, sources: Sequence[tuple[KVCache, int]]) -> None:
        """Copies of sequences join at the end; see `Engine.append`."""
        first = len(self.lengths)
        for cache, index in sources:
            cache._check_index(index)
        self._check_batch(first + len(sources))
        added = np.array([cache.lengths[index] for cache, index in sources], np.int64)
        self.reserve(first + len(sources), int(added.max(initial=0)))
        for place, (cache, index) in enumerate(sources, first):
            self._place(cache.blocks, [Move(place, 0, index, 0, int(cache.lengths[index]))])
        self.lengths = np.concatenate([self.lengths, added])
        self.version += 1

    def select(self, indices: Sequence[int]) -> None:
        """Keep these sequences, in this order; see `Engine.select`."""
        for index in indices:
            self._check_index(index)
        if len(set(indices)) < len(indices):
            raise EngineError(f"a sequence can be selected once, got {list(indices)}")
        lengths = self.lengths[np.asarray(indices, np.int64)]
        needed = self._executor.slots(max(int(lengths.max(initial=0)), 1))
        if self.slots > 2 * needed:
            # A short batch behind a long sequence that left would go on reading its empty slots.
            self._move(len(indices), needed, indices)
        else:
            pairs = enumerate(zip(indices, lengths.tolist(), strict=True))
            self._place(self.blocks, [Move(to, 0, b, 0, n) for to, (b, n) in pairs if to != b])
        self.lengths = lengths
        self.version += 1

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget the last rows of each sequence; see `Engine.truncate`."""
        kept = np.asarray(lengths, np.int64)
        if kept.shape != self.lengths.shape or (kept < 0).any() or (kept > self.lengths).any():
            raise EngineError(
                f"sequences of {self.lengths.tolist()} tokens cannot keep {list(lengths)} of them"
            )
        self.lengths = kept
        self.version += 1

    def keep(self, rows: Rows, kept: Sequence[Sequence[int]], lengths: IntArray) -> None:
        """Append rows of a step.

        Args:
            rows: The rows.
            kept: Which of them, for each sequence.
            lengths: ``[B]``: slots in use after that.
        """
        self.reserve(len(lengths), int(lengths.max()))
        starts = self.lengths.tolist()
        if rows.blocks is None:
            moves = [m for m in kept_moves(starts, kept, starts) if m.slot != m.source_slot]
            _copy(self.blocks, self.blocks, moves)
        else:
            _copy(self.blocks, rows.blocks, kept_moves(starts, kept, [0] * len(starts)))
            self._spare = rows.blocks  # a step is kept once
        self.lengths = lengths
        self.version += 1

    def rows_apart(self, batch: int, step: int) -> Blocks:
        """Memory for the new rows of a step; mostly that of the step before."""
        spare, self._spare = self._spare, None
        if spare is not None and (spare[0].shape[1], spare[0].shape[3]) == (batch, step):
            return spare
        return self._executor.blocks(batch, step, zeroed=False)

    def rows_in_slots(self, step: int, room: int) -> Rows:
        """Room for the new rows of a step in the slots behind the prefixes.

        Those of an earlier step that can still be committed are copied elsewhere first.

        Args:
            step: S.
            room: Slots that the model writes, with those of padding.
        """
        held = None if self._scratch is None else self._scratch()
        if held is not None and held.blocks is None and held.version == self.version:
            held.blocks = self._executor.blocks(len(self.lengths), held.width, zeroed=False)
            moves = [Move(b, 0, b, int(n), held.width) for b, n in enumerate(self.lengths)]
            _copy(held.blocks, self.blocks, moves)
        self.reserve(len(self.lengths), int(self.lengths.max()) + room)
        rows = Rows(self, step, None)
        self._scratch = weakref.ref(rows)
        return rows

    def reserve(self, places: int, tokens: int) -> None:
        """Make room; a quarter more places and what the executor says, so copying is amortised."""
        slots = self.slots
        if tokens > slots:
            slots = self._executor.slots(tokens, slots)
        if tokens > slots:
            raise EngineError(
                f"{tokens} tokens do not fit: the engine's cache has {slots} slots; feed fewer "
                "tokens a step"
            )
        if places <= self.places and slots == self.slots:
            return
        if not places <= self.places <= 2 * places:
            places = min(places + places // 4, self._executor.max_batch_size)
        else:
            places = self.places
        self._move(places, slots, range(len(self.lengths)))

    def _move(self, places: int, slots: int, order: Sequence[int]) -> None:
        """Take new memory, with these sequences in it."""
        old = self.blocks
        self.blocks = self._executor.blocks(self._rounded(places), slots)
        lengths = self.lengths.tolist()
        _copy(self.blocks, old, [Move(to, 0, b, 0, lengths[b]) for to, b in enumerate(order)])

    def _place(self, source: Blocks, sequences: Sequence[Move]) -> None:
        """Copy whole sequences to places.

        Slots behind them are cleared: the sequence that was there may have left because it gave
        NaN, and 0 * NaN is NaN even under a mask.
        """
        _copy(self.blocks, source, sequences)
        for block in self.blocks:
            for move in sequences:
                block.clear(move.place, move.rows)

    def _rounded(self, places: int) -> int:
        """At least one place, and room for a pair of rows, of which one may be nobody's."""
        places = max(places, 1)
        return places + places % 2 if self._executor.row_rule.pairs else places

    def _check_batch(self, batch: int) -> None:
        limit = self._executor.max_batch_size
        if batch > limit:
            raise EngineError(
                f"the batch would have {batch} sequences; the engine takes {limit}: give a smaller "
                "--batch-size, or build it with a larger --max-batch-size"
            )

    def _check_index(self, index: int) -> None:
        count = len(self.lengths)
        if not 0 <= index < count:
            raise EngineError(f"the cache holds {count} sequences; there is no sequence {index}")


class Rows:
    """The new rows of one step.

    Args:
        cache: The cache that the step runs on.
        width: S.
        blocks: Where they are, from slot 0 on; None: in the cache's slots behind the prefixes.

    Attributes:
        version: The state of the cache when the step ran.
    """

    def __init__(self, cache: KVCache, width: int, blocks: Blocks | None) -> None:
        self.cache = cache
        self.version = cache.version
        self.width = width
        self.blocks = blocks


def _copy(blocks: Blocks, source: Blocks, moves: Sequence[Move]) -> None:
    """Copy rows in the blocks of the base and of the channel alike."""
    moves = [move for move in moves if move.rows]
    if moves:
        for block, other in zip(blocks, source, strict=True):
            block.put(moves, other)
