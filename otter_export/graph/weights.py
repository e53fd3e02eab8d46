"""Weights behind a Transpose, and the codes that take their place."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from otter_export.graph.emit import add_initializer
from otter_export.graph.row_tensor import RowTensor

#: Suffix of the name, dtype and shape of one of several tensors that are made together.
PartSpec = tuple[str, ir.DataType, tuple[int, ...]]


def source_initializer(value: ir.Value | None) -> ir.Value | None:
    """The initializer behind a value, seen through a Transpose; None if there is none."""
    if value is None:
        return None
    producer = value.producer()
    if producer is not None and producer.op_type == "Transpose":
        value = producer.inputs[0]
    return value if value is not None and value.is_initializer() else None


def multiplied_weight(node: ir.Node | None) -> ir.Value | None:
    """W ``[out, in]`` of ``MatMul(x, Transpose(W))``; None for any other node."""
    if node is None or node.op_type != "MatMul":
        return None
    weight = source_initializer(node.inputs[1])
    return None if weight is node.inputs[1] else weight


def drop_unused(graph: ir.Graph, transposed: ir.Value | None, weight: ir.Value) -> None:
    """Remove the Transpose that makes a value, and the weight, where nothing reads them."""
    transpose = None if transposed is None else transposed.producer()
    if transpose is not None and not transpose.outputs[0].uses():
        graph.remove(transpose, safe=True)
    if not weight.uses():
        del graph.initializers[str(weight.name)]


def add_parts(
    graph: ir.Graph,
    stem: str,
    parts: Sequence[PartSpec],
    make: Callable[[], Sequence[npt.NDArray[Any] | None]],
) -> list[ir.Value]:
    """Initializers that are computed together once, and dropped as they are written.

    Args:
        graph: Where they go.
        stem: Of their names; those that exist are taken as they are.
        parts: What to add.
        make: Computes all of them, in the order of ``parts``.
    """
    waiting: dict[int, Any] = {}

    def take(index: int) -> npt.NDArray[Any]:
        if index not in waiting:
            waiting.update(enumerate(make()))
        return waiting.pop(index)  # type: ignore[no-any-return]

    def lazy(index: int, suffix: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.Value:
        name = f"{stem}{suffix}"
        tensor = ir.LazyTensor(
            lambda: ir.tensor(take(index), name=name), dtype, ir.Shape(shape), name=name
        )
        return add_initializer(graph, name, tensor)

    return [lazy(index, *part) for index, part in enumerate(parts)]


def add_row_parts(
    graph: ir.Graph,
    stem: str,
    parts: Sequence[PartSpec],
    make: Callable[[slice], Sequence[npt.NDArray[Any]]],
) -> list[ir.Value]:
    """Initializers that are computed together, some rows at a time.

    The first is written as its rows are made; the others are small and are kept until their turn.

    Args:
        graph: Where they go.
        stem: Of their names; those that exist are taken as they are.
        parts: What to add; all have the same number of rows.
        make: Computes the same rows of all of them, in the order of ``parts``.
    """
    names = [f"{stem}{suffix}" for suffix, _, _ in parts]
    beside = _Beside(parts[1:], make)
    (_, dtype, shape), *rest = parts
    codes = RowTensor(names[0], dtype, shape, beside.rows)
    beside.first = codes

    def lazy(index: int, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.TensorProtocol:
        name = names[index + 1]
        return ir.LazyTensor(
            lambda: ir.tensor(beside.take(index), name=name), dtype, ir.Shape(shape), name=name
        )

    tensors = [codes, *(lazy(i, dtype, shape) for i, (_, dtype, shape) in enumerate(rest))]
    return [add_initializer(graph, name, t) for name, t in zip(names, tensors, strict=True)]


class _Beside:
    """What is computed beside the rows of a tensor, until it is taken."""

    first: RowTensor

    def __init__(
        self, parts: Sequence[PartSpec], make: Callable[[slice], Sequence[npt.NDArray[Any]]]
    ) -> None:
        self._parts = parts
        self._make = make
        self._lock = threading.Lock()  # rows are made on every core
        self._arrays: dict[int, npt.NDArray[Any]] = {}
        self._missing = 0

    def rows(self, rows: slice) -> npt.NDArray[Any]:
        """Rows of the first part; those of the others are kept."""
        first, *others = self._make(rows)
        with self._lock:
            if len(self._arrays) < len(self._parts):
                self._missing = self._parts[0][2][0]
                shapes = [(shape, dtype.numpy()) for _, dtype, shape in self._parts]
                self._arrays = {i: np.empty(*one) for i, one in enumerate(shapes)}
            for index, values in enumerate(others):
                self._arrays[index][rows] = values
            self._missing -= len(first)
        return first

    def take(self, index: int) -> npt.NDArray[Any]:
        """Another part, whole; computed anew if that was not done yet, or it was taken."""
        if index not in self._arrays or self._missing > 0:
            self._arrays = {}
            for block in self.first.blocks():
                self.rows(block)
        return self._arrays.pop(index)
