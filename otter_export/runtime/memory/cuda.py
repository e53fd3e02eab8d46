"""Blocks in CUDA memory: a move is one ``cudaMemcpy3D``, for all heads and slices."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from otter_export.cuda import CudaDevice
from otter_export.runtime.memory.block import BlockShape, Move, cache_words
from otter_export.runtime.memory.pool import PooledMemory

ITEM_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}
#: Free memories that are kept; a waiting prompt and a batch need two each.
KEEP = 4


class CudaBlock:
    """A `Block` at an address.

    Args:
        device: Whose stream orders the copies.
        pointer: The address.
        shape: As `Block.shape`.
        dtype: Of `ITEM_SIZES`.
        scratch: Makes a block for what is moved inside this one.
    """

    def __init__(
        self,
        device: CudaDevice,
        pointer: int,
        shape: BlockShape,
        dtype: str,
        scratch: Callable[[BlockShape, str], CudaBlock],
    ) -> None:
        self._device, self._scratch = device, scratch
        self.pointer, self.shape, self.dtype = pointer, shape, dtype
        #: Bytes of one slot of one head.
        self._row = shape[4] * ITEM_SIZES[dtype]

    def address(self, index: int) -> int:
        """Address of slice ``index``."""
        _, places, heads, slots, _ = self.shape
        return self.pointer + index * places * heads * slots * self._row

    def put(self, moves: Sequence[Move], source: CudaBlock) -> None:
        """Copy rows; see `Block.put`."""
        if source is self and _overlap(moves):
            slices, _, heads, _, size = self.shape
            count = sum(move.rows for move in moves)
            copied = self._scratch((slices, 1, heads, count, size), self.dtype)
            # Gathered behind each other first, then spread.
            starts = [sum(m.rows for m in moves[:i]) for i in range(len(moves))]
            numbered = list(zip(moves, starts, strict=True))
            copied.put([Move(0, at, *m[2:]) for m, at in numbered], self)
            moves = [Move(*m[:2], 0, at, m.rows) for m, at in numbered]
            source = copied
        _, _, heads, _, _ = self.shape
        for move in moves:
            self._device.copy_box(
                self._corner(move.place, move.slot),
                source._corner(move.source_place, move.source_slot),
                (move.rows * self._row, heads, self.shape[0]),
            )

    def clear(self, place: int, start: int) -> None:
        """Set slots to zero; see `Block.clear`."""
        width = (self.shape[3] - start) * self._row
        if width:
            box = (width, self.shape[2], self.shape[0])
            self._device.clear_box(self._corner(place, start), box)

    def _corner(self, place: int, slot: int) -> tuple[int, int, int]:
        """A row as the corner of a box of rows by heads by slices: its address and the pitches."""
        _, places, heads, slots, _ = self.shape
        pitch = slots * self._row
        return self.pointer + place * heads * pitch + slot * self._row, pitch, places * heads


def _overlap(moves: Sequence[Move]) -> bool:
    """Whether a row is both written and read."""
    written = {(m.place, m.slot + i) for m in moves for i in range(m.rows)}
    read = {(m.source_place, m.source_slot + i) for m in moves for i in range(m.rows)}
    return not written.isdisjoint(read)


def cuda_memory(
    device: CudaDevice, dropped: Callable[[int], None] = lambda _: None, keep: int = KEEP
) -> PooledMemory[int, CudaBlock]:
    """Memory of a CUDA device, used on its stream.

    Args:
        device: The device.
        dropped: Called with the address of memory that is given up.
        keep: Most free memories that are kept.
    """
    sizes: dict[int, int] = {}

    def make(shape: BlockShape, dtype: str) -> int:
        size = math.prod(shape) * ITEM_SIZES[dtype]
        pointer = device.allocate(size, cache_words(shape))
        sizes[pointer] = size
        device.zero(pointer, size)
        return pointer

    def drop(pointer: int) -> None:
        del sizes[pointer]
        dropped(pointer)
        device.free(pointer)

    def wrap(pointer: int, shape: BlockShape, dtype: str) -> CudaBlock:
        return CudaBlock(device, pointer, shape, dtype, scratch)

    def scratch(shape: BlockShape, dtype: str) -> CudaBlock:
        return memory.block(shape, dtype, zeroed=False)

    memory: PooledMemory[int, CudaBlock] = PooledMemory(
        make=make,
        zero=lambda pointer: device.zero(pointer, sizes[pointer]),
        wrap=wrap,
        dropped=drop,
        keep=keep,
    )
    return memory
