"""Attention over a cache that is read, not written: the ``read_only`` cache form."""

from __future__ import annotations

import onnx_ir as ir

from otter_export.graph.attention import head_counts, replace_mask
from otter_export.graph.emit import Emitter
from otter_export.graph.grouped_attention import GroupedAttention
from otter_export.graph.shared_attention import base_of


class ReadOnlyCache(ir.passes.InPlacePass):
    """Split every softmax row over the cached prefix and the new tokens ("prefix + self").

    The prefix is never copied, the outputs are the new rows only, and the mask is free: new tokens
    may form any tree; a layer with a window narrows it. Rotation moves behind the split into heads,
    which saves a Reshape, and the heads that share a key row become rows of one product.

    Before::

        y, present_k, present_v = Attention(rotate(q), rotate(k), v, mask, past_k, past_v)

    After (G = H / Hkv; the mask input becomes bool ``[batch, step, past + step]``)::

        q = rotate(heads(q)) [B, Hkv, G*S, e];   k, v = rotate(heads(k)), heads(v) [B, Hkv, S, e]
        s = Concat(scale q past_k^T , scale q k^T) + bias;   p, p_new = Split(Softmax(s))
        y = p past_v + p_new v;   outputs: y, k, v

    An attention that shares the base's has neither q nor k: its p and p_new are Slices of theirs.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        attentions = [n for n in graph if n.op_type == "Attention"]
        if not attentions:
            return ir.passes.PassResult(model, modified=False)
        layers = _Layers(graph, attentions[0])
        for node in attentions:
            layers.lower(node)
        graph.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified=True)


class _Layers:
    """Lowers a graph's attentions, one after another."""

    def __init__(self, graph: ir.Graph, first: ir.Node) -> None:
        past_key = first.inputs[4]
        assert past_key is not None
        mask = replace_mask(graph, ["batch", "step", "past + step"])
        e = Emitter(graph, graph[0], before=True)
        axis = e.constant([1], "otter.mask_axis")
        wide = e.op("Unsqueeze", [mask, axis], "otter.mask", dtype=ir.DataType.BOOL)
        self._past = e.op(
            "Shape", [past_key], "otter.past", dtype=ir.DataType.INT64, start=2, end=3
        )
        self._graph = graph
        self._grouped = GroupedAttention(e, past_key, wide, self._key_positions)
        self._split = e.op("Concat", [self._past, self._grouped.step], "otter.split", axis=0)
        #: Attentions and what they give to cached and to new rows, ``[B, Hkv, G*S, P or S]``.
        self._lowered: dict[str, tuple[ir.Node, list[ir.Value]]] = {}

    def _key_positions(self, e: Emitter, queries: ir.Value) -> ir.Value:
        """Slot i of a prefix holds position i; the new rows, those of the queries."""
        zero, one = e.constant(0, "otter.zero"), e.constant(1, "otter.one")
        past = e.op("Squeeze", [self._past], "otter.past.scalar")
        slots = e.op("Range", [zero, past, one], "otter.slots", shape=["past"])
        size = e.op("Concat", [self._grouped.batch, self._past], "otter.prefix", axis=0)
        prefix = e.op("Expand", [slots, size], "otter.prefix.positions")
        return e.op("Concat", [prefix, queries], "otter.key_positions", axis=1)

    def lower(self, node: ir.Node) -> None:
        """Replace one Attention node."""
        prefix, base = str(node.outputs[0].name), base_of(node)
        e = Emitter(self._graph, node, before=True)
        new_values = self._grouped.heads(e, node.inputs[2], head_counts(node)[1], f"{prefix}.v")
        names = ("on_past", "on_new")
        if base is None:
            new_keys, weights = self._weights(e, node, names)
            self._lowered[str(node.name)] = node, weights
        else:
            new_keys, (other, whole) = None, self._lowered[base]
            both = zip(whole, names, strict=True)
            weights = [self._grouped.of_first_heads(e, node, other, w, name) for w, name in both]
        parts = [
            e.op("MatMul", [weights[0], node.inputs[5]], f"{prefix}.from_past"),
            e.op("MatMul", [weights[1], new_values], f"{prefix}.from_new"),
        ]
        y = e.op("Add", parts, f"{prefix}.rows")
        self._grouped.replace(e, node, y, (new_keys, new_values))

    def _weights(
        self, e: Emitter, node: ir.Node, names: tuple[str, str]
    ) -> tuple[ir.Value, list[ir.Value]]:
        """The new keys ``[B, Hkv, S, e]`` of an Attention, and its weights."""
        grouped, prefix = self._grouped, node.outputs[0].name
        query = grouped.queries(e, node)
        new_keys = grouped.heads(e, node.inputs[1], head_counts(node)[1], f"{prefix}.k")
        both = [
            grouped.scores(e, node, query, node.inputs[4], "past_scores"),
            grouped.scores(e, node, query, new_keys, "new_scores"),
        ]
        s = e.op("Concat", both, f"{prefix}.scores", axis=-1)
        weights = grouped.weights(e, node, s)
        parts = e.nodes("Split", [weights, self._split], [f"{prefix}.{n}" for n in names], axis=-1)
        parts[1].type = weights.type
        return new_keys, list(parts)
