"""Compute logits and signals for chosen rows of a step only."""

from __future__ import annotations

import onnx_ir as ir

from otter_export.graph.emit import Emitter
from otter_export.graph.signals import head_nodes

INPUT = "kept_rows"


class KeepRows(ir.passes.InPlacePass):
    """A client names the rows that it wants: a prompt's last token, or the candidates of a step.

    Sequences of a batch end at different rows of a padded step, so each names its own.

    Before::

        logits = MatMul(n, W^T) [B, S, V]      reward = head(n')

    After, with a new graph input ``kept_rows`` int64 ``[batch, kept]``::

        n_kept = GatherND(n, Unsqueeze(kept_rows, -1), batch_dims=1)
        logits = MatMul(n_kept, W^T) [B, kept, V]                        (same for n')
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        heads = head_nodes(graph)
        if not heads or any(v.name == INPUT for v in graph.inputs):
            return ir.passes.PassResult(model, modified=False)
        rows = ir.Value(
            name=INPUT, shape=ir.Shape(["batch", "kept"]), type=ir.TensorType(ir.DataType.INT64)
        )
        # The caches follow the token inputs; new inputs stay in front of them.
        graph.inputs.insert(_first_cache(graph), rows)
        e = Emitter(graph, graph[0], before=True)
        axis = e.constant([-1], "otter.axis_last")
        indices = e.op("Unsqueeze", [rows, axis], f"{INPUT}.indices", shape=["batch", "kept", 1])
        gathered: dict[ir.Value, ir.Value] = {}
        for node in heads:
            state = node.inputs[0]
            assert state is not None
            if state not in gathered:
                gathered[state] = _gather(graph, node, state, indices)
            node.replace_input_with(0, gathered[state])
        for output in graph.outputs:
            if output.shape is not None and "present" not in str(output.name):
                output.shape = ir.Shape(["batch", "kept", *list(output.shape)[2:]])
        return ir.passes.PassResult(model, modified=True)


def _gather(graph: ir.Graph, node: ir.Node, state: ir.Value, indices: ir.Value) -> ir.Value:
    e = Emitter(graph, node, before=True)
    width = None if state.shape is None else state.shape[-1]
    shape = ["batch", "kept", width]
    return e.op("GatherND", [state, indices], f"{state.name}.kept", shape=shape, batch_dims=1)


def _first_cache(graph: ir.Graph) -> int:
    names = [str(v.name) for v in graph.inputs]
    return next((i for i, name in enumerate(names) if "key_values." in name), len(names))
