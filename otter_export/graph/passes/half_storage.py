"""Matrices stored in float16, computed in float32."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from otter_export.graph.emit import Emitter, add_initializer, static_shape, value_of
from otter_export.graph.row_tensor import row_tensor, rows_of


class HalfStorage(ir.passes.InPlacePass):
    """Halve the file: a CPU computes in float32 anyway, and the Cast is folded or row-wise.

    Before::

        y = MatMul(x, W_t)            x = Gather(E, ids)

    After::

        y = MatMul(x, Cast(W_t_half))   (folded when the engine is loaded)
        x = Cast(Gather(E_half, ids))
    """

    def __init__(self, select: Callable[[str], bool]) -> None:
        """``select(name)``: True for the initializers to store in float16, if they are matrices."""
        super().__init__()
        self._select = select

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        changed = False
        for name, value in list(graph.initializers.items()):
            if value.dtype != ir.DataType.FLOAT or not self._select(name):
                continue
            if len(static_shape(value)) < 2:  # norms and biases: no size to save, much to lose
                continue
            for use in list(value.uses()):
                half = _half(graph, value)
                if use.node.op_type == "Gather" and use.idx == 0:
                    _cast_rows(graph, use.node, half)
                else:
                    e = Emitter(graph, use.node, before=True)
                    wide = e.op(
                        "Cast",
                        [half],
                        f"{name}.wide.{use.node.outputs[0].name}",
                        dtype=ir.DataType.FLOAT,
                        to=ir.DataType.FLOAT,
                    )
                    use.node.replace_input_with(use.idx, wide)
            del graph.initializers[name]
            changed = True
        return ir.passes.PassResult(model, modified=changed)


def _half(graph: ir.Graph, value: ir.Value) -> ir.Value:
    name = f"{value.name}_half"
    tensor = value_of(value)
    half = row_tensor(
        name,
        ir.DataType.FLOAT16,
        static_shape(tensor),
        lambda rows: rows_of(tensor, rows),
        getattr(tensor, "stored", None),
    )
    return add_initializer(graph, name, half)


def _cast_rows(graph: ir.Graph, gather: ir.Node, half: ir.Value) -> None:
    """Gather in float16, then widen the rows that were gathered."""
    output = gather.outputs[0]
    name, output.name = str(output.name), f"{output.name}.half"
    e = Emitter(graph, gather)
    wide = e.op("Cast", [output], name, dtype=ir.DataType.FLOAT, to=ir.DataType.FLOAT)
    wide.shape = output.shape
    for use in list(output.uses()):
        if use.node is not wide.producer():
            use.node.replace_input_with(use.idx, wide)
    gather.replace_input_with(0, half)
    output.type = ir.TensorType(ir.DataType.FLOAT16)
