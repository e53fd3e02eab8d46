"""The cache of the ONNX Runtime backend: sequences in places, which they take and give up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from otter_export.errors import EngineError
from otter_export.runtime.backends.cache_block import Block
from otter_export.runtime.engine import IntArray

#: Capacity is a multiple of this many slots, so that the graph sees few different shapes. It is
#: also a multiple of every vector's lanes, so that a token adds up the same numbers in the same
#: order whatever the capacity is.
SLOTS = 32

#: Blocks of the base's and of the channel's heads, for so many sequences and slots.
BlockMaker = Callable[[int, int], tuple[Block, Block]]


@dataclasses.dataclass
class Rows:
    """New rows of one step: the two blocks that the graph wrote, S slots each.

    Args:
        cache: The cache that the step was run on.
        version: The state of the cache then.
        blocks: Base and channel.
    """

    cache: OnnxCache
    version: int
    blocks: tuple[Block, Block]

    @property
    def width(self) -> int:
        """S."""
        return self.blocks[0].shape[3]


class OnnxCache:
    """Key/value rows of a batch, bound to the graph in place.

    Sequence b is place b of both blocks; behind the last there may be free places, so that joining
    copies the newcomer alone, and leaving the last one alone, into the hole.

    Args:
        make_blocks: Makes memory.
        limit: Most tokens of a sequence.
        batch_size: Sequences to begin with, empty.
        binding: ONNX Runtime's binding; the backend keeps this cache's memory bound to it.

    Attributes:
        lengths: ``[B]``: slots in use.
        version: Counts changes, to recognise a step that was run on an earlier state.
        rows: Memory for new rows that is bound as outputs.
        bound: What is bound, by prefix.
    """

    def __init__(self, make_blocks: BlockMaker, limit: int, batch_size: int, binding: Any) -> None:
        self._make_blocks = make_blocks
        self._limit = slots_for(limit)
        self.blocks = make_blocks(_even(batch_size), SLOTS)
        self.lengths: IntArray = np.zeros(batch_size, np.int64)
        self._arrange()
        self.binding = binding
        self.version = 0
        self.rows: Rows | None = None
        self.bound: dict[str, tuple[Any, ...]] = {}

    @property
    def capacity(self) -> int:
        """Slots per sequence."""
        return self.blocks[0].shape[3]

    @property
    def places(self) -> int:
        """Sequences that the memory holds; always even."""
        return self.blocks[0].room // self.capacity

    def append(self, sources: Sequence[tuple[OnnxCache, int]]) -> None:
        """Copies of sequences join; see `Engine.append`."""
        for cache, index in sources:
            if cache is self:
                raise EngineError("a sequence cannot be appended to its own cache")
            _check_index(index, len(cache.lengths))
        first = len(self.lengths)
        lengths = np.array([cache.lengths[index] for cache, index in sources], np.int64)
        self.reserve(first + len(sources), int(lengths.max(initial=0)))
        self.lengths = np.concatenate([self.lengths, lengths])
        self._arrange()
        for b, (cache, index) in enumerate(sources, first):
            self._copy(b, cache.blocks, index, range(int(self.lengths[b])))
        self._changed()

    def select(self, indices: Sequence[int]) -> None:
        """Keep these sequences; see `Engine.select`."""
        for index in indices:
            _check_index(index, len(self.lengths))
        if len(set(indices)) < len(indices):
            raise EngineError(f"a sequence can be kept once, got {list(indices)}")
        lengths = self.lengths[np.asarray(indices, np.int64)]
        needed = slots_for(int(lengths.max(initial=0)))
        forward = all(index >= place for place, index in enumerate(indices))
        # A short batch behind a long sequence that left would go on reading its empty slots.
        if forward and self.capacity <= 2 * needed:
            for place, index in enumerate(indices):
                if index != place:
                    self._copy(place, self.blocks, index, range(int(lengths[place])))
        else:
            capacity = needed if self.capacity > 2 * needed else self.capacity
            self._move(len(indices), capacity, indices)
        self.lengths = lengths
        self._arrange()
        self._changed()

    def keep(self, rows: Rows, kept: Sequence[Sequence[int]], lengths: IntArray) -> None:
        """Append rows of a step.

        Args:
            rows: The rows.
            kept: Which of them, for each sequence.
            lengths: ``[B]``: slots in use after that.
        """
        self.reserve(len(lengths), int(lengths.max()))
        for b, chosen in enumerate(kept):
            if len(chosen):
                self._copy(b, rows.blocks, b, chosen, int(self.lengths[b]))
        self.lengths = lengths
        self._changed()

    def reserve(self, batch: int, length: int) -> None:
        """Make room; a quarter more places and an eighth more slots, so that copying is amortised.

        Attention reads the whole capacity, so doubling it would cost more than it saves.
        """
        if batch <= self.places and length <= self.capacity:
            return
        places, capacity = self.places, self.capacity
        if not batch <= places <= 2 * batch:
            places = batch + batch // 4
        if length > capacity:
            capacity = min(slots_for(max(length, capacity + capacity // 8)), self._limit)
        self._move(places, capacity, range(len(self.lengths)))
        self._arrange()

    def _move(self, places: int, capacity: int, order: Sequence[int]) -> None:
        """Take new memory, with these sequences in it."""
        old = self.blocks
        self.blocks = self._make_blocks(_even(places), capacity)
        for place, index in enumerate(order):
            self._copy(place, old, index, range(int(self.lengths[index])))

    def _copy(
        self,
        place: int,
        source: tuple[Block, Block],
        index: int,
        rows: Sequence[int],
        start: int = 0,
    ) -> None:
        for block, other in zip(self.blocks, source, strict=True):
            block.put(place, start, other, index, rows)

    def _arrange(self) -> None:
        for block in self.blocks:
            block.arrange(len(self.lengths), block.shape[3])

    def _changed(self) -> None:
        self.blocks[0].wait()
        self.version += 1


def slots_for(length: int) -> int:
    """Capacity for ``length`` tokens."""
    return max(SLOTS, -(-length // SLOTS) * SLOTS)


def _even(count: int) -> int:
    """Room for a pair of rows, of which one may be nobody's; see `OnnxRuntimeEngine`."""
    return max(2, count + count % 2)


def _check_index(index: int, count: int) -> None:
    if not 0 <= index < count:
        raise EngineError(f"the cache has sequences 0 to {count - 1}, got {index}")
