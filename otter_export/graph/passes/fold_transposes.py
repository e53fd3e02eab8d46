"""Weights are stored as MatMul reads them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from otter_export.graph.emit import add_initializer, lazy_tensor, static_shape, value_of


class FoldTransposes(ir.passes.InPlacePass):
    """Transpose weights when they are written, not when the model runs.

    ONNX Runtime would fold the Transpose itself, at every start and with a second copy of the
    weight in memory. Base weights of target ``onnx`` stay ``[out, in]``: see `GemmWeights`.

    Before::

        W [out, in];   Wt = Transpose(W);   y = MatMul(x, Wt)

    After::

        W_t [in, out];   y = MatMul(x, W_t)
    """

    def __init__(self, *, shared: bool = True) -> None:
        """``shared=False`` leaves weights that are also read untransposed: a tied embedding."""
        super().__init__()
        self._shared = shared

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        folded = False
        for node in list(graph):
            weight = node.inputs[0] if node.op_type == "Transpose" else None
            if weight is None or not weight.is_initializer():
                continue
            if not self._shared and any(u.node.op_type != "Transpose" for u in weight.uses()):
                continue
            ir.convenience.replace_all_uses_with(node.outputs[0], _transposed(graph, weight))
            graph.remove(node, safe=True)
            if not weight.uses():
                del graph.initializers[str(weight.name)]
            folded = True
        return ir.passes.PassResult(model, modified=folded)


def _transposed(graph: ir.Graph, weight: ir.Value) -> ir.Value:
    name = f"{weight.name}_t"
    tensor = value_of(weight)
    shape = static_shape(tensor)[::-1]
    lazy = lazy_tensor(name, tensor.dtype, shape, lambda: np.transpose(tensor.numpy()))
    return add_initializer(graph, name, lazy)
