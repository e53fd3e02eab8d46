"""Sums of the channel's products, each of which adds to what is there already."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from otter_export.graph.emit import Emitter
from otter_export.graph.weights import multiplied_weight


class ChainProducts(ir.passes.InPlacePass):
    """Gemm adds its product to a matrix, so a sum of products needs no Add.

    A step of a small model costs as much by its nodes as by its arithmetic. The base's sums stay as
    they are: their order is part of its bits.

    Before (c: a bias or the residual; states ``[tokens, n]``)::

        y' = Add(c, Add(MatMul(x, A), MatMul(x', B)))

    After::

        y' = Gemm(x', B, Gemm(x, A, c))
    """

    def __init__(self, is_channel: Callable[[str], bool]) -> None:
        """``is_channel``: whether a weight of this name is one of the channel's."""
        super().__init__()
        self._is_channel = is_channel

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph, changed = model.graph, False
        # From the last Add of a sum, which takes those before it along.
        for node in reversed(list(graph)):
            if node.op_type == "Add" and node.graph is not None:
                changed = self._chain(graph, node) or changed
        return ir.passes.PassResult(model, modified=changed)

    def _chain(self, graph: ir.Graph, add: ir.Node) -> bool:
        """Replace one sum; False if it has no product of the channel."""
        products: list[ir.Node] = []
        others: list[ir.Value] = []
        self._collect(add, products, others)
        if not products:
            return False
        shape = products[0].outputs[0].shape
        start = next((i for i, value in enumerate(others) if _fits(value, shape)), None)
        if start is None and len(products) == 1:
            return False
        e, name = Emitter(graph, add, before=True), str(add.outputs[0].name)
        y = None if start is None else others.pop(start)
        for product in products:
            x, weight = product.inputs
            stem = f"{product.outputs[0].name}.chained"
            if y is None:
                y = e.op("MatMul", [x, weight], stem, shape=shape)
            else:
                y = e.op("Gemm", [x, weight, y], stem, shape=shape)
        for index, value in enumerate(others):
            y = e.op("Add", [y, value], f"{name}.term{index}", shape=shape)
        assert y is not None
        ir.convenience.replace_all_uses_with(add.outputs[0], y)
        _remove(graph, add)
        return True

    def _collect(self, add: ir.Node, products: list[ir.Node], others: list[ir.Value]) -> None:
        """The terms of a sum: products of the channel that nothing else reads, and the rest."""
        for value in add.inputs:
            assert value is not None
            node = value.producer()
            if node is None or len(value.uses()) > 1 or value.is_graph_output():
                others.append(value)
            elif node.op_type == "Add":
                self._collect(node, products, others)
            elif self._is_product(node):
                products.append(node)
            else:
                others.append(value)

    def _is_product(self, node: ir.Node) -> bool:
        weight, shape = multiplied_weight(node), node.outputs[0].shape
        is_flat = shape is not None and len(shape) == 2
        return weight is not None and is_flat and self._is_channel(str(weight.name))


def _fits(value: ir.Value, shape: ir.Shape | None) -> bool:
    """Whether Gemm can start from a value: a bias, or a state as wide as the product."""
    if shape is None or value.shape is None or len(value.shape) not in (1, 2):
        return False
    return value.shape[-1] == shape[-1]


def _remove(graph: ir.Graph, node: ir.Node) -> None:
    """Remove a node, and what only it has read."""
    made = [value.producer() for value in node.inputs if value is not None]
    graph.remove(node, safe=True)
    for one in made:
        if one is None or one.graph is not graph or one.op_type not in ("Add", "MatMul"):
            continue
        if not one.outputs[0].uses():
            _remove(graph, one)
