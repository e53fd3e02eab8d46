"""A form that was measured and not taken: the channel's sibling projections as one product."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from otter_export.graph.emit import (
    Emitter,
    add_initializer,
    lazy_tensor,
    static_shape,
    value_of,
)

Key = tuple[ir.Value, ir.Value]


class StackSiblings(ir.passes.InPlacePass):
    """Stack the channel parts of q, k, v (and of gate, up), which read the same x and x'.

    Nine nodes become four, which was worth 4 % at most (docs/performance.md).

    Before, for each sibling i::

        y'_i = Add(MatMul(x, A_i^T), MatMul(x', B_i^T))

    After::

        y' = Add(MatMul(x, [A_0; A_1; ...]^T), MatMul(x', [B_0; B_1; ...]^T));   y'_i = Split(y')
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        groups: dict[Key, list[ir.Node]] = defaultdict(list)
        for node in graph:
            key = _key(node)
            if key is not None:
                groups[key].append(node)
        stacked = [nodes for nodes in groups.values() if len(nodes) > 1]
        for nodes in stacked:
            _stack(graph, nodes)
        return ir.passes.PassResult(model, modified=bool(stacked))


def _key(add: ir.Node) -> Key | None:
    """``(x, x')`` if the node is the Add of a widened projection's channel part."""
    if add.op_type != "Add":
        return None
    products = [v.producer() if v is not None else None for v in add.inputs]
    if any(p is None or p.op_type != "MatMul" for p in products):
        return None
    names = [_weight_name(p) for p in products if p is not None]
    if not (names[0].endswith(".otter.from_base") and names[1].endswith(".otter.from_channel")):
        return None
    x, channel = (p.inputs[0] for p in products if p is not None)
    return None if x is None or channel is None else (x, channel)


def _stack(graph: ir.Graph, adds: Sequence[ir.Node]) -> None:
    outputs = [add.outputs[0] for add in adds]
    e = Emitter(graph, _first(graph, adds), before=True)
    sums = []
    widths: list[int] = []
    for side in (0, 1):
        products = [_producer(add.inputs[side]) for add in adds]
        weights = [_source(product) for product in products]
        widths = [static_shape(w)[0] for w in weights]
        name = "+".join(str(w.name) for w in weights)
        weight = _concatenated(graph, name, weights)
        transposed = e.op("Transpose", [weight], f"{name}_t", perm=[1, 0])
        sums.append(e.op("MatMul", [products[0].inputs[0], transposed], f"{name}_matmul"))
    name = "+".join(str(v.name) for v in outputs)
    leading = [] if outputs[0].shape is None else list(outputs[0].shape)[:-1]
    total = e.op("Add", sums, name, shape=[*leading, sum(widths)])
    parts = e.nodes(
        "Split",
        [total, e.constant(widths, "otter.split." + "_".join(map(str, widths)))],
        [f"{v.name}.part" for v in outputs],
        axis=-1,
    )
    for old, new in zip(outputs, parts, strict=True):
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new)
    for add in adds:
        products = [_producer(v) for v in add.inputs]
        graph.remove(add, safe=True)
        for product in products:
            transpose = _producer(product.inputs[1])
            graph.remove(product, safe=True)
            graph.remove(transpose, safe=True)


def _first(graph: ir.Graph, nodes: Sequence[ir.Node]) -> ir.Node:
    wanted = set(nodes)
    return next(node for node in graph if node in wanted)


def _concatenated(graph: ir.Graph, name: str, weights: Sequence[ir.Value]) -> ir.Value:
    tensors = [value_of(weight) for weight in weights]
    shapes = [static_shape(tensor) for tensor in tensors]
    shape = (sum(rows for rows, _ in shapes), shapes[0][1])

    def make() -> npt.NDArray[Any]:
        return np.concatenate([tensor.numpy() for tensor in tensors])

    value = add_initializer(graph, name, lazy_tensor(name, tensors[0].dtype, shape, make))
    for weight in weights:
        # Their Transposes still hold a use; they go with the products.
        graph.initializers.pop(str(weight.name), None)
    return value


def _producer(value: ir.Value | None) -> ir.Node:
    node = value.producer() if value is not None else None
    if node is None:
        raise ValueError("a widened projection without a producer")
    return node


def _source(product: ir.Node) -> ir.Value:
    weight = _producer(product.inputs[1]).inputs[0]
    assert weight is not None
    return weight


def _weight_name(product: ir.Node) -> str:
    transpose = product.inputs[1].producer() if product.inputs[1] is not None else None
    if transpose is None or transpose.op_type != "Transpose" or transpose.inputs[0] is None:
        return ""
    return str(transpose.inputs[0].name)
