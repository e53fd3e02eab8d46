"""Weights that are made some rows at a time, so that memory does not grow with their size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from otter_export.graph.emit import rounded
from otter_export.safetensors_io import TensorInfo

#: Makes the rows of a slice, ``[rows, ...]``.
MakeRows = Callable[[slice], npt.NDArray[Any]]
#: Values of a block: 4 MiB in float32, which a core's cache nearly holds through all steps.
_BLOCK_VALUES = 1 << 20


class RowTensor(ir.LazyTensor):
    """A tensor that can be made rows by rows, or whole.

    Attributes:
        rows: Makes the rows of a slice, in the tensor's type.
        stored: Where these values lie one after the other in a safetensors file, in whatever type;
            None if they lie nowhere.
    """

    def __init__(
        self,
        name: str,
        dtype: ir.DataType,
        shape: Sequence[int],
        rows: MakeRows,
        stored: TensorInfo | None = None,
    ) -> None:
        super().__init__(self._whole, dtype, ir.Shape(shape), name=name)
        self.rows = rows
        self.stored = stored

    def blocks(self) -> Iterator[slice]:
        """Slices that cover all rows, in order."""
        shape = self.shape.numpy()
        step = max(1, _BLOCK_VALUES // max(1, int(np.prod(shape[1:]))))
        return (slice(i, min(i + step, shape[0])) for i in range(0, shape[0], step))

    def _whole(self) -> ir.TensorProtocol:
        array = np.empty(self.shape.numpy(), self.dtype.numpy())
        for block in self.blocks():
            array[block] = self.rows(block)
        return ir.tensor(array, dtype=self.dtype, name=self.name)


def row_tensor(
    name: str,
    dtype: ir.DataType,
    shape: Sequence[int],
    make: MakeRows,
    stored: TensorInfo | None = None,
) -> RowTensor:
    """A weight whose rows are made when they are written, and forgotten afterwards.

    Args:
        name: Its name, also in errors.
        dtype: A float type; what ``make`` returns is rounded to it.
        shape: Of the whole.
        make: Reads or computes the values of some rows; any float dtype.
        stored: See `RowTensor`.

    Returns:
        The tensor. Making rows raises CheckpointError for NaN or infinity in them, and
        UnsupportedError for values that ``dtype`` cannot hold.
    """
    return RowTensor(name, dtype, shape, lambda rows: rounded(name, make(rows), dtype), stored)


def rows_of(tensor: ir.TensorProtocol, rows: slice) -> npt.NDArray[Any]:
    """Some rows of a tensor, which are made alone where they can be."""
    return tensor.rows(rows) if isinstance(tensor, RowTensor) else tensor.numpy()[rows]
