"""Blocks in numpy memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export.runtime.memory.block import BlockShape, Move
from otter_export.runtime.memory.pool import PooledMemory

#: Free memories that are kept: new rows of base and channel, of a prompt and of four step sizes.
KEEP = 10


class HostBlock:
    """A `Block` that is a numpy array of `Block.shape`."""

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array = array
        self.dtype = str(array.dtype)
        self._address = int(array.ctypes.data)

    @property
    def shape(self) -> BlockShape:
        """See `Block.shape`."""
        slices, places, heads, slots, size = self.array.shape
        return slices, places, heads, slots, size

    def address(self, index: int) -> int:
        """Address of slice ``index``."""
        return self._address + index * self.array.strides[0]

    def put(self, moves: Sequence[Move], source: HostBlock) -> None:
        """Copy rows; see `Block.put`."""
        read = [source.array[:, m.source_place, :, _slots(m.source_slot, m)] for m in moves]
        if source is self:
            read = [rows.copy() for rows in read]
        for move, rows in zip(moves, read, strict=True):
            self.array[:, move.place, :, _slots(move.slot, move)] = rows

    def clear(self, place: int, start: int) -> None:
        """Set slots to zero; see `Block.clear`."""
        self.array[:, place, :, start:] = 0


def _slots(first: int, move: Move) -> slice:
    return slice(first, first + move.rows)


def host_memory() -> PooledMemory[npt.NDArray[Any], HostBlock]:
    """Memory of the host; an old one of the same size is taken again."""
    return PooledMemory(
        make=lambda shape, dtype: np.zeros(shape, np.dtype(dtype)),
        zero=lambda array: array.fill(0),
        wrap=lambda array, _shape, _dtype: HostBlock(array),
        dropped=lambda _: None,
        keep=KEEP,
    )
