"""The memory of one cache: the rows of all layers in one block, so that a row moves in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt


class Block(Protocol):
    """Keys and values of all layers, ``[2 * layers, batch, heads, slots, head size]``.

    Slice ``2 * n`` holds the keys of layer n and slice ``2 * n + 1`` its values; a slice is
    contiguous and is bound to the graph by its address.
    """

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """The five sizes above."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """float32 or float16."""
        ...

    @property
    def device(self) -> str:
        """ONNX Runtime's name of where the memory is: ``cpu`` or ``cuda``."""
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

    def __init__(self, shape: tuple[int, int, int, int, int], dtype: np.dtype[Any]) -> None:
        self.array: npt.NDArray[Any] = np.zeros(shape, dtype)
        self.shape = shape
        self.dtype = dtype

    def address(self, index: int) -> int:
        """Address of slice ``index``."""
        return int(self.array[index].ctypes.data)

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
