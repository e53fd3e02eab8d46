"""Attention in products over a cache that the model writes: ``in_place`` for ONNX Runtime's CPU."""

from __future__ import annotations

import onnx_ir as ir

from otter_export.graph.attention import head_counts
from otter_export.graph.emit import Emitter
from otter_export.graph.grouped_attention import GroupedAttention
from otter_export.graph.in_place import in_place_inputs, slot_positions, updated
from otter_export.graph.shared_attention import base_of

#: Slots of a cache: as many as the client has memory for, from step to step.
_SLOTS = "capacity"


class InPlaceProducts(ir.passes.InPlacePass):
    """Scatter a step's rows into the caches, then attend to all slots under a bool mask.

    A token's row lies in the slot of its position before anyone reads it. So the sums over keys run
    over the same numbers in the same order whether the tokens before it came in the same step or
    earlier, and a draft that is kept has the bits of a token that was fed alone; the ``read_only``
    form adds two sums instead. Past and present are bound to one memory, where ONNX Runtime's CPU
    writes the new rows and copies nothing. Rotation and groups of heads are as in `ReadOnlyCache`.

    Before::

        y, present_k, present_v = Attention(rotate(q), rotate(k), v, mask, past_k, past_v)

    After (C: slots; G = H / Hkv; the mask input becomes bool ``[batch, 1, step, C]``, and int64
    ``write_indices [batch]`` is the slot of each sequence's first new row)::

        q = rotate(heads(q)) [B, Hkv, G*S, e]
        present_k = TensorScatter(past_k, rotate(heads(k)), write_indices)    [B, Hkv, C, e]
        present_v = TensorScatter(past_v, heads(v), write_indices)
        p = Softmax(scale q present_k^T + bias);   y = p present_v

    An attention that shares the base's has neither q nor k: its p is a Slice of theirs.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        attentions = [n for n in graph if n.op_type == "Attention"]
        if not attentions:
            return ir.passes.PassResult(model, modified=False)
        past_key = attentions[0].inputs[4]
        assert past_key is not None
        mask, indices = in_place_inputs(graph, _SLOTS)
        e = Emitter(graph, graph[0], before=True)

        def key_positions(e: Emitter, queries: ir.Value) -> ir.Value:
            zero, one = e.constant(0, "otter.zero"), e.constant(1, "otter.stride")
            axis = e.constant([0], "otter.row_axis")
            integers = ir.DataType.INT64
            count = e.op("Shape", [past_key], "otter.capacity", dtype=integers, start=2, end=3)
            count = e.op("Squeeze", [count], "otter.capacity.scalar")
            slots = e.op("Range", [zero, count, one], "otter.slots.flat", shape=[_SLOTS])
            slots = e.op("Unsqueeze", [slots, axis], "otter.slots", shape=[1, _SLOTS])
            return slot_positions(e, slots, queries, indices, _SLOTS)

        grouped = GroupedAttention(e, past_key, mask, key_positions)
        lowered: dict[str, tuple[ir.Node, ir.Value]] = {}
        for node in attentions:
            _lower(graph, node, grouped, indices, lowered)
        graph.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified=True)


def _lower(
    graph: ir.Graph,
    node: ir.Node,
    grouped: GroupedAttention,
    indices: ir.Value,
    lowered: dict[str, tuple[ir.Node, ir.Value]],
) -> None:
    """Replace one Attention node; ``lowered`` has the base's, and their weights, by their names."""
    prefix, base, kv_heads = str(node.outputs[0].name), base_of(node), head_counts(node)[1]
    e = Emitter(graph, node, before=True)

    def cache(index: int, name: str) -> ir.Value:
        rows = grouped.heads(e, node.inputs[index], kv_heads, f"{prefix}.{name}")
        past = node.inputs[index + 3]
        return updated(e, past, rows, indices, _SLOTS, f"{prefix}.{name}.cache")

    if base is None:
        keys: ir.Value | None = cache(1, "k")
        scores = grouped.scores(e, node, grouped.queries(e, node), keys, "scores")
        weights = grouped.weights(e, node, scores)
        lowered[str(node.name)] = node, weights
    else:
        keys, weights = None, grouped.of_first_heads(e, node, *lowered[base], "weights")
    values = cache(2, "v")
    y = e.op("MatMul", [weights, values], f"{prefix}.rows")
    grouped.replace(e, node, y, (keys, values))
