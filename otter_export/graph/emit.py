"""`Emitter`: append nodes to a graph one by one, with names, shapes and dtypes set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from otter_export.errors import CheckpointError, UnsupportedError

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
            op_type, inputs, attributes, domain=domain, outputs=values, name=f"{op_type}/{names[0]}"
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
        return add_initializer(self.graph, name, ir.tensor(np.asarray(values, dtype), name=name))


def attributes_of(node: ir.Node) -> dict[str, Any]:
    """A node's attributes by name, to be given to another."""
    return {name: attribute.value for name, attribute in node.attributes.items()}


def add_initializer(graph: ir.Graph, name: str, tensor: ir.TensorProtocol) -> ir.Value:
    """The initializer of that name; a new one has this value."""
    existing = graph.initializers.get(name)
    if existing is not None:
        return existing
    value = ir.Value(
        name=name,
        shape=ir.Shape(static_shape(tensor)),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    graph.register_initializer(value)
    return value


def lazy_tensor(name: str, dtype: ir.DataType, shape: Sequence[int], make: Make) -> ir.LazyTensor:
    """A tensor that is made when it is written, and forgotten afterwards.

    Args:
        name: Its name, also in errors.
        dtype: A float type; what ``make`` returns is rounded to it.
        shape: What ``make`` will return; a difference is a bug of the caller.
        make: Reads or computes the values; any float dtype.

    Returns:
        The tensor. Evaluating it raises CheckpointError for NaN or infinity in the values, and
        UnsupportedError for values that ``dtype`` cannot hold.
    """

    def evaluate() -> ir.TensorProtocol:
        array = np.ascontiguousarray(make())
        if array.shape != tuple(shape):
            raise ValueError(f"{name}: made {array.shape}, declared {tuple(shape)}")
        return ir.tensor(rounded(name, array, dtype), dtype=dtype, name=name)

    return ir.LazyTensor(evaluate, dtype, ir.Shape(shape), name=name)


def static_shape(value: ir.Value | ir.TensorProtocol) -> tuple[int, ...]:
    """The shape of a weight as integers; weights have no symbolic dimensions."""
    if value.shape is None:
        raise ValueError(f"{value.name} has no shape")
    return tuple(int(d) for d in value.shape)  # type: ignore[arg-type]


def value_of(value: ir.Value) -> ir.TensorProtocol:
    """The tensor of an initializer."""
    if value.const_value is None:
        raise ValueError(f"{value.name} has no value")
    return value.const_value


def rounded(name: str, array: npt.NDArray[Any], dtype: ir.DataType) -> npt.NDArray[Any]:
    """Cast to ``dtype``; a weight that is not finite before or after is an error.

    Raises:
        CheckpointError: The values hold NaN or infinity.
        UnsupportedError: ``dtype`` cannot hold them.
    """
    # min and max need no temporary of the array's size, and NaN spreads through both.
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not (np.isfinite(low) and np.isfinite(high)):
        raise not_finite(name)
    # numpy.finfo knows no bfloat16.
    limit = float(ml_dtypes.finfo(dtype.numpy()).max)  # type: ignore[no-untyped-call]
    largest = max(-low, high)
    if largest > limit:
        raise UnsupportedError(
            f"tensor {name} holds {largest:.6g}, beyond the largest {dtype.name.lower()} "
            f"({limit:.6g}); build with a precision of wider range: fp32, or bf16 for --target trt"
        )
    return array.astype(dtype.numpy(), copy=False)


def not_finite(name: str) -> CheckpointError:
    """What is raised for a weight that holds NaN or infinity."""
    return CheckpointError(f"tensor {name} holds NaN or infinity; an engine needs finite weights")
