"""Memory of caches that are gone, kept for new ones of the same size.

A CUDA graph reads and writes fixed addresses. When the next request's cache gets the memory of the
last one's, the graphs that were captured on it still serve.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

M = TypeVar("M")

#: Memories that are kept while nothing uses them; a waiting prompt and a batch need two each.
KEEP = 4


class SlotPool(Generic[M]):
    """Memories that are free, the least recently freed first.

    Args:
        dropped: Called with a memory that is not kept, so that what refers to it can go too.
        keep: Most free memories.
    """

    def __init__(self, dropped: Callable[[M], None], keep: int = KEEP) -> None:
        self._dropped = dropped
        self._keep = keep
        self._free: collections.deque[tuple[Hashable, M]] = collections.deque()

    def take(self, key: Hashable) -> M | None:
        """A free memory of this size, or None; its content is that of its last use."""
        for index in range(len(self._free) - 1, -1, -1):
            if self._free[index][0] == key:
                memory = self._free[index][1]
                del self._free[index]
                return memory
        return None

    def give(self, key: Hashable, memory: M) -> None:
        """Nothing uses this memory any more."""
        self._free.append((key, memory))
        while len(self._free) > self._keep:
            self._dropped(self._free.popleft()[1])

    def clear(self) -> None:
        """Drop all: the device needs room."""
        while self._free:
            self._dropped(self._free.popleft()[1])
