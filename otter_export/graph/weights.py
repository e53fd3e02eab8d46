"""Weights behind a Transpose, and the codes that take their place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from otter_export.graph.emit import add_initializer

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
