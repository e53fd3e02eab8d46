"""The gains of the channel's norms inside of the matrices behind them."""

from __future__ import annotations

import onnx_ir as ir

from otter_export.graph.emit import add_initializer, lazy_tensor, static_shape, value_of
from otter_export.graph.weights import source_initializer

#: Between the names of a matrix and of the gain that it holds.
BY = "_by_"


class FoldGains(ir.passes.InPlacePass):
    """``B (s * gamma')`` is ``(B diag(gamma')) s``, which saves a node for each norm.

    Only where nothing but projections from the channel read the norm: the final one's rows are
    chosen before its heads read them, and a bias comes between.

    Before::

        n' = Mul(s, gamma');   y' = Gemm(n', Transpose(B), c)

    After::

        y' = Gemm(s, Transpose(B_by_gamma'), c)
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph, changed = model.graph, False
        for node in list(graph):
            readers = _readers(node)
            if not readers:
                continue
            for reader in readers:
                _fold(graph, reader, node)
            graph.remove(node, safe=True)
            changed = True
        return ir.passes.PassResult(model, modified=changed)


def _readers(mul: ir.Node) -> list[ir.Node]:
    """What reads a norm's product with its gain; none if one of them has no matrix to fold it."""
    gain = mul.inputs[1] if mul.op_type == "Mul" else None
    if gain is None or not gain.is_initializer() or not str(gain.name).endswith(".otter.weight"):
        return []
    uses = list(mul.outputs[0].uses())
    can_fold = all(use.idx == 0 and _matrix(use.node) is not None for use in uses)
    return [use.node for use in uses] if can_fold else []


def _matrix(node: ir.Node) -> ir.Value | None:
    """B of a product with ``Transpose(B)``, if it is a part of the channel's from the channel."""
    if node.op_type not in ("MatMul", "Gemm"):
        return None
    matrix = source_initializer(node.inputs[1])
    is_part = matrix is not None and str(matrix.name).endswith(".otter.from_channel")
    return matrix if is_part and matrix is not node.inputs[1] else None


def _fold(graph: ir.Graph, reader: ir.Node, mul: ir.Node) -> None:
    gain, matrix, transposed = mul.inputs[1], _matrix(reader), reader.inputs[1]
    assert gain is not None and matrix is not None and transposed is not None
    transpose = transposed.producer()
    assert transpose is not None
    tensors = value_of(matrix), value_of(gain)
    name = f"{matrix.name}{BY}{gain.name}"
    folded = lazy_tensor(
        name,
        tensors[0].dtype,
        static_shape(matrix),
        lambda: tensors[0].numpy() * tensors[1].numpy(),
    )
    transpose.replace_input_with(0, add_initializer(graph, name, folded))
    transposed.name = f"{name}_t"
    reader.replace_input_with(0, mul.inputs[0])
