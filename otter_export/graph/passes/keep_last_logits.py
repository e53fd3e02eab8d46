"""Compute logits and signals for the last R positions only."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from otter_export.graph.emit import Emitter
from otter_export.graph.signals import head_nodes

INPUT = "logits_to_keep"


class KeepLastLogits(ir.passes.InPlacePass):
    """A prompt needs the logits of its last token; the head is a fifth of a small model's work.

    Before::

        logits = MatMul(n, W^T)                reward = head(n')

    After, with a new graph input ``logits_to_keep`` int64 ``[1]``::

        n_last = Slice(n, -R, max, axis=1)     logits = MatMul(n_last, W^T)     (same for n')
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        heads = head_nodes(graph)
        keep = ir.Value(name=INPUT, shape=ir.Shape([1]), type=ir.TensorType(ir.DataType.INT64))
        graph.inputs.append(keep)
        sliced: dict[ir.Value, ir.Value] = {}
        for node in heads:
            state = node.inputs[0]
            assert state is not None
            if state not in sliced:
                e = Emitter(graph, node, before=True)
                sliced[state] = _slice_last(e, keep, state)
            node.replace_input_with(0, sliced[state])
        for output in graph.outputs:
            if output.shape is not None and "present" not in str(output.name):
                output.shape = ir.Shape(["batch", "kept", *list(output.shape)[2:]])
        return ir.passes.PassResult(model, modified=True)


def _slice_last(e: Emitter, keep: ir.Value, state: ir.Value) -> ir.Value:
    start = e.op("Neg", [keep], f"{state.name}.start")
    end = e.constant([np.iinfo(np.int64).max], "otter.slice_end")
    axis = e.constant([1], "otter.slice_axis")
    width = None if state.shape is None else state.shape[-1]
    shape = ["batch", "kept", width]
    return e.op("Slice", [state, start, end, axis], f"{state.name}.last", shape=shape)
