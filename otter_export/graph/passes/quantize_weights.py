"""Weight-only int8 and int4 of products with the base's states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from otter_export.graph.block_codes import quantize
from otter_export.graph.emit import Emitter, static_shape, value_of
from otter_export.graph.row_tensor import rows_of
from otter_export.graph.weights import PartSpec, add_row_parts, drop_unused, multiplied_weight
from otter_export.precision import WeightFormat

_ACCURACY_LEVEL = 4  # int8 activations inside the kernel; without it int4 is four times as slow


class QuantizeWeights(ir.passes.InPlacePass):
    """Store weights that multiply base states in 8 or 4 bits; the others keep their precision.

    Before::

        y = MatMul(x, Transpose(W [out, in]))

    After (blocks along ``in``; zero points, two to a byte, unless symmetric)::

        y = com.microsoft.MatMulNBits(x, W_q [out, blocks, bytes], scales [out, blocks],
                                      zero_points [out, ceil(blocks / 2)])
    """

    def __init__(self, choose: Callable[[str], WeightFormat | None]) -> None:
        """``choose(name)``: the format of an initializer; None for those that are left alone."""
        super().__init__()
        self._choose = choose

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        changed = False
        for node in list(graph):
            weight = multiplied_weight(node)
            stored = None if weight is None else self._choose(str(weight.name))
            if weight is None or stored is None:
                continue
            _replace(graph, node, weight, stored)
            changed = True
        graph.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified=changed)


def _replace(graph: ir.Graph, node: ir.Node, weight: ir.Value, stored: WeightFormat) -> None:
    """Let a product over codes take the node's place; the weight goes where nothing reads it."""
    rows, columns = static_shape(weight)
    output, transposed = node.outputs[0], node.inputs[1]
    name, output.name = str(output.name), f"{output.name}.float"
    y = Emitter(graph, node, before=True).op(
        "MatMulNBits",
        [node.inputs[0], *_codes(graph, weight, stored)],
        name,
        domain="com.microsoft",
        shape=output.shape,
        K=columns,
        N=rows,
        bits=stored.bits,
        block_size=stored.block,
        accuracy_level=_ACCURACY_LEVEL,
    )
    ir.convenience.replace_all_uses_with(output, y, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    drop_unused(graph, transposed, weight)


def _codes(graph: ir.Graph, weight: ir.Value, stored: WeightFormat) -> list[ir.Value]:
    """The inputs of MatMulNBits that stand for a weight."""
    tensor, bits = value_of(weight), stored.bits
    rows, columns = static_shape(tensor)
    block = stored.block or columns
    blocks = -(-columns // block)
    parts: list[PartSpec] = [
        ("", ir.DataType.UINT8, (rows, blocks, block * bits // 8)),
        ("_scales", ir.DataType.FLOAT, (rows, blocks)),
    ]
    if not stored.symmetric:
        parts.append(("_zero_points", ir.DataType.UINT8, (rows, -(-blocks * bits // 8))))

    def make(rows: slice) -> list[npt.NDArray[Any]]:
        packed = quantize(rows_of(tensor, rows), stored)
        return [part for part in packed if part is not None]

    return add_row_parts(graph, f"{weight.name}_int{bits}", parts, make)
