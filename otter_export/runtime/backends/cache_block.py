"""The memory of one cache: the rows of all layers in one block, so that a row moves in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

#: Slices, sequences, heads, slots, head size.
BlockShape = tuple[int, int, int, int, int]


class Block(Protocol):
    """Keys and values of all layers, ``[2 * layers, batch, heads, slots, head size]``.

    Slice ``2 * n`` holds the keys of layer n and slice ``2 * n + 1`` its values. The sequences of a
    slice are contiguous and are bound to the graph by their address; behind them a slice may have
    room for more.
    """

    @property
    def shape(self) -> BlockShape:
        """The five sizes above, as they are laid out now."""
        ...

    @property
    def room(self) -> int:
        """Sequences times slots that its memory holds."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float16."""
        ...

    @property
    def device(self) -> str:
        """ONNX Runtime's name of where the memory is: ``cpu`` or ``cuda``."""
        ...

    def arrange(self, batch: int, slots: int) -> None:
        """Lay the memory out for other sizes, ``batch * slots`` of `room` at most.

        With as many slots as before, sequences keep their content.
        """
        ...

    def address(self, index: int) -> int:
        """Address of slice ``index``."""
        ...

    def put(self, b: int, start: int, source: Any, source_b: int, rows: Sequence[int]) -> None:
        """Copy slots of another block of this kind.

        Args:
            b: Sequence to write.
            start: First slot to write; the others follow.
            source: Block to read.
            source_b: Sequence to read.
            rows: Slots to read, in order.
        """
        ...

    def wait(self) -> None:
        """Return when all copies are done."""
        ...


class HostBlock:
    """A `Block` in numpy memory, zeroed: an unused slot is masked, but must not hold a NaN."""

    device = "cpu"

    def __init__(self, shape: BlockShape, dtype: np.dtype[Any]) -> None:
        slices, batch, heads, slots, size = shape
        self._memory: npt.NDArray[Any] = np.zeros((slices, batch * heads * slots * size), dtype)
        self.room = batch * slots
        self.dtype = dtype
        self.shape = shape
        self.arrange(batch, slots)

    def arrange(self, batch: int, slots: int) -> None:
        """Lay the memory out for other sizes; see `Block.arrange`."""
        slices, _, heads, _, size = self.shape
        self.shape = (slices, batch, heads, slots, size)
        used = self._memory[:, : batch * heads * slots * size]
        self.array: npt.NDArray[Any] = used.reshape(self.shape)

    def address(self, index: int) -> int:
        """Address of slice ``index``."""
        return int(self._memory[index].ctypes.data)

    def put(
        self, b: int, start: int, source: HostBlock, source_b: int, rows: Sequence[int]
    ) -> None:
        """Copy slots of another block; see `Block.put`."""
        if isinstance(rows, range):
            taken = source.array[:, source_b, :, rows.start : rows.stop]
        else:
            taken = source.array[:, source_b][:, :, list(rows)]
        self.array[:, b, :, start : start + len(rows)] = taken

    def wait(self) -> None:
        """Copies are done when `put` returns."""
