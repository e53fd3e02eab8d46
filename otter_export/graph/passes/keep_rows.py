"""Logits and signals of the rows that are wanted only: the last ones, or those that are named."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from otter_export.engine_io import KEPT_ROWS, LOGITS_TO_KEEP, is_cache
from otter_export.graph.emit import Dimensions, Emitter
from otter_export.graph.signals import head_nodes

#: Emits the rows of a state that a head reads, given their shape.
Pick = Callable[[Emitter, ir.Value, Dimensions], ir.Value]


class KeepLastLogits(ir.passes.InPlacePass):
    """A prompt needs the logits of its last token; the head is a fifth of a small model's work.

    Before::

        logits = MatMul(n, W^T)                reward = head(n')

    After, with a new graph input ``logits_to_keep`` int64 ``[1]``::

        n_last = Slice(n, -R, max, axis=1)     logits = MatMul(n_last, W^T)     (same for n')
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        keep = _int64_input(LOGITS_TO_KEEP, [1])
        model.graph.inputs.append(keep)

        def last(e: Emitter, state: ir.Value, shape: Dimensions) -> ir.Value:
            start = e.op("Neg", [keep], f"{state.name}.start")
            end = e.constant([np.iinfo(np.int64).max], "otter.slice_end")
            axis = e.constant([1], "otter.slice_axis")
            return e.op("Slice", [state, start, end, axis], f"{state.name}.last", shape=shape)

        _let_heads_read(model.graph, last)
        return ir.passes.PassResult(model, modified=True)


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
        names = [v.name for v in graph.inputs]
        if not head_nodes(graph) or KEPT_ROWS in names:
            return ir.passes.PassResult(model, modified=False)
        rows = _int64_input(KEPT_ROWS, ["batch", "kept"])
        # The caches follow the token inputs; new inputs stay in front of them.
        graph.inputs.insert(next((i for i, n in enumerate(names) if is_cache(n)), len(names)), rows)
        e = Emitter(graph, graph[0], before=True)
        axis = e.constant([-1], "otter.axis_last")
        three = ["batch", "kept", 1]
        indices = e.op("Unsqueeze", [rows, axis], f"{KEPT_ROWS}.indices", shape=three)

        def kept(e: Emitter, state: ir.Value, shape: Dimensions) -> ir.Value:
            name = f"{state.name}.kept"
            return e.op("GatherND", [state, indices], name, shape=shape, batch_dims=1)

        _let_heads_read(graph, kept)
        return ir.passes.PassResult(model, modified=True)


def _int64_input(name: str, shape: Dimensions) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.INT64))


def _let_heads_read(graph: ir.Graph, pick: Pick) -> None:
    """Let every head read the rows that are picked of its state; outputs become as short."""
    picked: dict[ir.Value, ir.Value] = {}
    for node in head_nodes(graph):
        state = node.inputs[0]
        assert state is not None
        if state not in picked:
            width = None if state.shape is None else state.shape[-1]
            shape = ["batch", "kept", width]
            picked[state] = pick(Emitter(graph, node, before=True), state, shape)
        node.replace_input_with(0, picked[state])
    for output in graph.outputs:
        if output.shape is not None and not is_cache(output.name):
            output.shape = ir.Shape(["batch", "kept", *list(output.shape)[2:]])
