"""A bounded table that forgets what was not used for the longest time."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The most recently used entries; for CUDA graphs, each of which holds device memory.

    Args:
        limit: Most entries.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._entries: collections.OrderedDict[K, V] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K, make: Callable[[], V]) -> V:
        """The entry, made if there is none; the one used longest ago goes when there are too many.

        Args:
            key: Of the entry.
            make: Makes it.
        """
        if key not in self._entries:
            self._entries[key] = make()
        self._entries.move_to_end(key)
        while len(self._entries) > self._limit:
            self._entries.popitem(last=False)
        return self._entries[key]

    def forget(self, unwanted: Callable[[K], bool]) -> None:
        """Drop the entries whose keys are not wanted any more."""
        for key in [key for key in self._entries if unwanted(key)]:
            del self._entries[key]
