"""Blocks as torch tensors, on the CPU or on a GPU; torch is imported when one is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from otter_export.cuda import out_of_memory
from otter_export.runtime.memory.block import BlockShape, Move, cache_words
from otter_export.runtime.memory.pool import PooledMemory

if TYPE_CHECKING:
    import torch

#: Free memories that are kept; a waiting prompt and a batch need two each.
KEEP = 4


class TorchBlock:
    """A `Block` that is a torch tensor of `Block.shape`."""

    def __init__(self, tensor: torch.Tensor, dtype: str) -> None:
        self.tensor = tensor
        self.dtype = dtype

    @property
    def shape(self) -> BlockShape:
        """See `Block.shape`."""
        slices, places, heads, slots, size = self.tensor.shape
        return slices, places, heads, slots, size

    def address(self, index: int) -> int:
        """Address of slice ``index``."""
        return int(self.tensor[index].data_ptr())

    def put(self, moves: Sequence[Move], source: TorchBlock) -> None:
        """Copy rows in one indexed copy, which reads all first; see `Block.put`."""
        if moves:
            place, slot, source_place, source_slot = self._indices(moves)
            rows = source.tensor[:, source_place, :, source_slot]
            self.tensor[:, place, :, slot] = rows

    def clear(self, place: int, start: int) -> None:
        """Set slots to zero; see `Block.clear`."""
        self.tensor[:, place, :, start:].zero_()

    def _indices(self, moves: Sequence[Move]) -> list[torch.Tensor]:
        """Place and slot of every row, to write and to read."""
        import torch

        table = np.array(moves, np.int64)
        counts = table[:, 4]
        rows = np.repeat(table, counts, axis=0)
        offsets = np.arange(len(rows)) - np.repeat(counts.cumsum() - counts, counts)
        rows[:, [1, 3]] += offsets[:, None]
        return [torch.from_numpy(rows[:, i].copy()).to(self.tensor.device) for i in range(4)]


def torch_memory(
    device: str, dropped: Callable[[int], None]
) -> PooledMemory[torch.Tensor, TorchBlock]:
    """Memory of a torch device, used on its current stream.

    Args:
        device: torch's name of it: ``cpu``, ``cuda``.
        dropped: Called with the address of memory that is given up.
    """

    def make(shape: BlockShape, dtype: str) -> torch.Tensor:
        import torch

        element: torch.dtype = getattr(torch, dtype)
        try:
            return torch.zeros(shape, dtype=element, device=device)
        except torch.OutOfMemoryError:
            size = math.prod(shape) * element.itemsize
            raise out_of_memory(size, cache_words(shape)) from None

    def zero(tensor: Any) -> None:
        tensor.zero_()

    return PooledMemory(
        make=make,
        zero=zero,
        wrap=lambda tensor, _shape, dtype: TorchBlock(tensor, dtype),
        dropped=lambda tensor: dropped(tensor.data_ptr()),
        keep=KEEP,
    )
