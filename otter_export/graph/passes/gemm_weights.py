"""Products that read a weight as the checkpoint stores it."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from otter_export.graph.emit import Emitter
from otter_export.graph.weights import drop_unused, multiplied_weight


class GemmWeights(ir.passes.InPlacePass):
    """Multiply by ``[out, in]``, so that weights need no transposing when they are written.

    ONNX Runtime packs a constant weight when it loads an engine, and packs both layouts to the same
    bytes: results are equal bit for bit, and so is the speed (docs/performance.md).

    Before::

        y = MatMul(x [T, in], Transpose(W [out, in]))        z = Add(y, b)

    After::

        y = Gemm(x, W, transB=1)                             z = Gemm(x, W, b, transB=1)
    """

    def __init__(self, select: Callable[[str], bool]) -> None:
        """``select(name)``: True for the initializers that stay as they are."""
        super().__init__()
        self._select = select

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        changed = False
        for node in list(graph):
            weight = multiplied_weight(node)
            x = node.inputs[0] if node.inputs else None
            flat = x is not None and x.shape is not None and len(x.shape) == 2
            if weight is None or not flat or not self._select(str(weight.name)):
                continue
            _replace(graph, node, weight)
            changed = True
        return ir.passes.PassResult(model, modified=changed)


def _replace(graph: ir.Graph, node: ir.Node, weight: ir.Value) -> None:
    """Let a Gemm take the place of a product, and of the Add of its bias."""
    transposed, replaced = node.inputs[1], [node]
    inputs = [node.inputs[0], weight]
    add, bias = _bias(node)
    if add is not None:
        replaced, inputs = [add, node], [*inputs, bias]
    output = replaced[0].outputs[0]
    name, output.name = str(output.name), f"{output.name}.before"
    y = Emitter(graph, replaced[0], before=True).op(
        "Gemm", inputs, name, dtype=output.dtype, shape=output.shape, transB=1
    )
    ir.convenience.replace_all_uses_with(output, y, replace_graph_outputs=True)
    graph.remove(replaced, safe=True)
    drop_unused(graph, transposed, weight)


def _bias(node: ir.Node) -> tuple[ir.Node | None, ir.Value | None]:
    """The Add of a bias that alone reads a product, and the bias ``[out]``."""
    product = node.outputs[0]
    uses = list(product.uses())
    add = uses[0].node if len(uses) == 1 and not product.is_graph_output() else None
    if add is None or add.op_type != "Add":
        return None, None
    bias = add.inputs[1 - uses[0].idx]
    vector = bias is not None and bias.is_initializer() and len(bias.shape or ()) == 1
    return (add, bias) if vector else (None, None)
