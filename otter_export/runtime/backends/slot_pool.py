"""Memory of caches that are gone, kept for new ones of the same size.

A CUDA graph reads and writes fixed addresses. When the next request's cache gets the memory of the
last one's, the graphs that were captured on it still serve.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

M = TypeVar("M")

#: Memories that are kept while nothing uses them; a waiting prompt and a batch need two each.
KEEP = 4


@dataclasses.dataclass(frozen=True, eq=False)
class Pooled(Generic[M]):
    """A memory that a pool knows: its size, and when it was made."""

    memory: M
    key: Hashable
    serial: int


class SlotPool(Generic[M]):
    """Memories by size.

    Args:
        dropped: Called with a memory that is not kept, so that what refers to it can go too.
        keep: Most free memories.
    """

    def __init__(self, dropped: Callable[[M], None], keep: int = KEEP) -> None:
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
            make: Makes a new one.
        """
        fitting = [pooled for pooled in self._free if pooled.key == key]
        if not fitting:
            return Pooled(make(), key, next(self._serials)), True
        oldest = min(fitting, key=lambda pooled: pooled.serial)
        self._free.remove(oldest)
        return oldest, False

    def give(self, pooled: Pooled[M]) -> None:
        """Nothing uses this memory any more."""
        self._free.append(pooled)
        while len(self._free) > self._keep:
            self._dropped(self._free.pop(0).memory)

    def clear(self) -> None:
        """Drop all that is free: the device needs room."""
        while self._free:
            self._dropped(self._free.pop(0).memory)
