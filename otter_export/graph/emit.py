"""`Emitter`: append nodes to a graph one by one, with names, shapes and dtypes set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

Dimensions = Sequence[int | str | ir.SymbolicDim | None]
Make = Callable[[], npt.NDArray[Any]]


class Emitter:
    """Inserts nodes after an anchor, each after the one before.

    Args:
        graph: The graph to extend.
        anchor: New nodes come right after this node; with ``before=True`` right before it.
    """

    def __init__(self, graph: ir.Graph, anchor: ir.Node, *, before: bool = False) -> None:
        self.graph = graph
        self._anchor = anchor
        self._before = before

    def nodes(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        names: Sequence[str],
        *,
        domain: str = "",
        dtype: ir.DataType | None = None,
        shape: Dimensions | None = None,
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Emit one node; returns its outputs, named ``names`` (``""`` leaves one out).

        ``dtype`` and ``shape`` describe the first output; dtype defaults to the first input's.
        """
        first = next(v for v in inputs if v is not None)
        values = [ir.Value(name=name or None) for name in names]
        resolved = dtype or first.dtype
        if resolved is not None:
            values[0].type = ir.TensorType(resolved)
        if shape is not None:
            values[0].shape = ir.Shape(shape)
        node = ir.node(
            op_type, inputs, attributes, domain=domain, outputs=values, name=f"node/{names[0]}"
        )
        if self._before:
            self.graph.insert_before(self._anchor, node)
        else:
            self.graph.insert_after(self._anchor, node)
            self._anchor = node
        return node.outputs

    def op(
        self, op_type: str, inputs: Sequence[ir.Value | None], name: str, **options: Any
    ) -> ir.Value:
        """Emit a node with one output; see `nodes`."""
        return self.nodes(op_type, inputs, [name], **options)[0]

    def constant(self, values: Any, name: str, dtype: Any = np.int64) -> ir.Value:
        """A small initializer, shared by name."""
        existing = self.graph.initializers.get(name)
        if existing is not None:
            return existing
        return add_initializer(self.graph, name, ir.tensor(np.asarray(values, dtype), name=name))


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """Register a new initializer with its value."""
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def lazy_tensor(name: str, dtype: ir.DataType, shape: Sequence[int], make: Make) -> ir.LazyTensor:
    """A tensor that is made when it is written, and forgotten afterwards.

    ``make`` returns an array of any float dtype; it is rounded to ``dtype``.
    """

    def evaluate() -> ir.TensorProtocol:
        array = np.ascontiguousarray(make())
        if array.shape != tuple(shape):
            raise ValueError(f"{name}: made {array.shape}, declared {tuple(shape)}")
        return ir.tensor(array.astype(dtype.numpy(), copy=False), dtype=dtype, name=name)

    return ir.LazyTensor(evaluate, dtype, ir.Shape(shape), name=name)


def array_of(value: ir.Value) -> npt.NDArray[Any]:
    """The numpy value of an initializer (evaluates a lazy one)."""
    if value.const_value is None:
        raise ValueError(f"{value.name} has no value")
    return value.const_value.numpy()
