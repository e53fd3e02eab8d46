"""Memory of blocks that are gone, kept for new ones of the same size.

What is bound to an address still serves when the next block of a size gets the memory of the last
one: a CUDA graph that reads and writes it, or ONNX Runtime's binding.
"""

from __future__ import annotations

import dataclasses
import itertools
import weakref
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from otter_export.errors import EngineError
from otter_export.runtime.memory.block import Block, BlockShape

M = TypeVar("M")


@dataclasses.dataclass(frozen=True, eq=False)
class Pooled(Generic[M]):
    """A memory that a pool knows: its size, and when it was made."""

    memory: M
    key: Hashable
    serial: int


class Pool(Generic[M]):
    """Memories by size.

    Args:
        dropped: Called with a memory that is not kept.
        keep: Most free memories.
    """

    def __init__(self, dropped: Callable[[M], None], keep: int) -> None:
        self._dropped = dropped
        self._keep = keep
        self._serials = itertools.count()
        #: The least recently freed first.
        self._free: list[Pooled[M]] = []

    def take(self, key: Hashable, make: Callable[[], M]) -> tuple[Pooled[M], bool]:
        """A memory of this size, and whether it is new; an old one holds what it held last.

        The oldest comes first, so that the same requests get the same memories again.

        Args:
            key: Its size.
            make: Makes a new one; if it raises `EngineError`, what is free is given up first, which
                may be enough.
        """
        fitting = [pooled for pooled in self._free if pooled.key == key]
        if fitting:
            oldest = min(fitting, key=lambda pooled: pooled.serial)
            self._free.remove(oldest)
            return oldest, False
        try:
            memory = make()
        except EngineError:
            self.clear()
            memory = make()
        return Pooled(memory, key, next(self._serials)), True

    def give(self, pooled: Pooled[M]) -> None:
        """Nothing uses this memory any more."""
        self._free.append(pooled)
        while len(self._free) > self._keep:
            self._dropped(self._free.pop(0).memory)

    def clear(self) -> None:
        """Drop all that is free: the device needs room."""
        while self._free:
            self._dropped(self._free.pop(0).memory)


B = TypeVar("B", bound=Block)


class PooledMemory(Generic[M, B]):
    """A `Memory` that keeps what is free.

    Args:
        make: A new memory, zeroed.
        zero: Zeroes a memory.
        wrap: A block on a memory.
        dropped: Called with a memory that is not kept.
        keep: Most free memories.
    """

    def __init__(
        self,
        make: Callable[[BlockShape, str], M],
        zero: Callable[[M], None],
        wrap: Callable[[M, BlockShape, str], B],
        dropped: Callable[[M], None],
        keep: int,
    ) -> None:
        self._make, self._zero, self._wrap = make, zero, wrap
        self._pool: Pool[M] = Pool(dropped, keep)

    def block(self, shape: BlockShape, dtype: str, *, zeroed: bool = True) -> B:
        """See `Memory.block`."""
        pooled, new = self._pool.take((shape, dtype), lambda: self._make(shape, dtype))
        if zeroed and not new:
            self._zero(pooled.memory)
        block = self._wrap(pooled.memory, shape, dtype)
        # No reference to the block itself, else it would never go.
        weakref.finalize(block, self._pool.give, pooled).atexit = False
        return block

    def clear(self) -> None:
        """See `Memory.clear`."""
        self._pool.clear()
