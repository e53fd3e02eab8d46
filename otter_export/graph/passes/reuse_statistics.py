"""The channel's norms reuse 1/sigma that ONNX Runtime's norms already compute."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from otter_export.graph.emit import Emitter, attributes_of
from otter_export.graph.functions import epsilon_of


class ReuseStatistics(ir.passes.InPlacePass):
    """Use norms that give their statistics as outputs, fused with the residual if there is one.

    Before::

        x = Add(a, b);   n = RMSNormalization(x, gamma);   r = com.otter.InverseRms(x)

    After::

        n, _, r, x = com.microsoft.SkipSimplifiedLayerNormalization(a, b, gamma)

    Without a residual Add: ``n, r = SimplifiedLayerNormalization(x, gamma)``. LayerNormalization
    has the mean and 1/sigma as its own optional outputs (opset 17).
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        changed = False
        for node in list(graph):
            if node.op_type == "RMSNormalization":
                _lower_rms(graph, node)
                changed = True
            elif node.op_type == "LayerNormalization" and len(node.outputs) == 1:
                _lower_layer_norm(graph, node)
                changed = True
        graph.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified=changed)


def _lower_rms(graph: ir.Graph, node: ir.Node) -> None:
    x, gamma = node.inputs[0], node.inputs[1]
    assert x is not None
    stem = str(node.outputs[0].name)
    epsilon = epsilon_of(node)
    statistics = _consumer(x, "InverseRms")
    add = x.producer()
    if add is not None and _is_residual(add) and not x.is_graph_output():
        # In the place of the Add, so that all its readers come after.
        n, _, r, total = Emitter(graph, add).nodes(
            "SkipSimplifiedLayerNormalization",
            [add.inputs[0], add.inputs[1], gamma],
            [f"{stem}.skip", "", f"{stem}.inverse_rms", f"{stem}.sum"],
            domain="com.microsoft",
            epsilon=epsilon,
        )
        total.type, total.shape = x.type, x.shape
        ir.convenience.replace_all_uses_with(x, total)
        graph.remove(add, safe=True)
    else:
        n, r = Emitter(graph, node, before=True).nodes(
            "SimplifiedLayerNormalization",
            [x, gamma],
            [f"{stem}.norm", f"{stem}.inverse_rms"],
            axis=-1,
            epsilon=epsilon,
            stash_type=1,
        )
    r.type = ir.TensorType(ir.DataType.FLOAT)
    _replace(graph, node, [n])
    if statistics is not None:
        _replace(graph, statistics, [r])


def _lower_layer_norm(graph: ir.Graph, node: ir.Node) -> None:
    x = node.inputs[0]
    assert x is not None
    statistics = _consumer(x, "MeanInverseStd")
    stem = str(node.outputs[0].name)
    e = Emitter(graph, node, before=True)
    n, mean, r = e.nodes(
        "LayerNormalization",
        list(node.inputs),
        [f"{stem}.norm", f"{stem}.mean", f"{stem}.inverse_std"],
        **attributes_of(node),
    )
    for value in (mean, r):
        value.type = ir.TensorType(ir.DataType.FLOAT)
    _replace(graph, node, [n])
    if statistics is not None:
        _replace(graph, statistics, [mean, r])


def _replace(graph: ir.Graph, node: ir.Node, values: Sequence[ir.Value]) -> None:
    for old, new in zip(node.outputs, values, strict=False):
        new.shape = new.shape or old.shape
        new.type = old.type or new.type
        ir.convenience.replace_all_uses_with(old, new)
    graph.remove(node, safe=True)


def _is_residual(add: ir.Node) -> bool:
    """An Add of two activations (not of a bias)."""
    return add.op_type == "Add" and not any(
        v is None or v.is_initializer() or v.is_graph_input() for v in add.inputs
    )


def _consumer(x: ir.Value, op_type: str) -> ir.Node | None:
    return next((u.node for u in x.uses() if u.node.op_type == op_type), None)
