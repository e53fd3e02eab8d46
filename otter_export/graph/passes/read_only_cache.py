"""Attention over a cache that is read, not written: the ``read_only`` cache form."""

from __future__ import annotations

import functools

import onnx_ir as ir

from otter_export.engine_io import INPUT_IDS, POSITION_IDS
from otter_export.graph.attention import (
    MASKED,
    capped_scores,
    replace_attention,
    replace_mask,
    scale_of,
    split_heads,
)
from otter_export.graph.emit import Emitter
from otter_export.graph.windows import near, window_of


class ReadOnlyCache(ir.passes.InPlacePass):
    """Split every softmax row over the cached prefix and the new tokens ("prefix + self").

    The prefix is never copied, the outputs are the new rows only, and the mask is free: new tokens
    may form any tree; a layer with a window narrows it. Rotation moves behind the split into heads,
    which saves a Reshape, and the heads that share a key row become rows of one product. Measured
    in docs/performance.md.

    Before::

        y, present_k, present_v = Attention(rotate(q), rotate(k), v, mask, past_k, past_v)

    After (G = H / Hkv; the mask input becomes bool ``[batch, step, past + step]``)::

        q = rotate(heads(q)) [B, Hkv, G*S, e];   k, v = rotate(heads(k)), heads(v) [B, Hkv, S, e]
        s = Concat(scale q past_k^T , scale q k^T) + bias;   p, p_new = Split(Softmax(s))
        y = p past_v + p_new v;   outputs: y, k, v
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        attentions = [n for n in graph if n.op_type == "Attention"]
        if not attentions:
            return ir.passes.PassResult(model, modified=False)
        mask = replace_mask(graph, ["batch", "step", "past + step"])
        shared = _Shared(graph, attentions[0], mask)
        for node in attentions:
            _lower(graph, node, shared)
        graph.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified=True)


class _Shared:
    """Values that all layers use, at the head of the graph."""

    def __init__(self, graph: ir.Graph, first: ir.Node, mask: ir.Value) -> None:
        ids = next(v for v in graph.inputs if v.name == INPUT_IDS)
        past_key = first.inputs[4]
        assert past_key is not None
        dtype = past_key.dtype or ir.DataType.FLOAT
        e = self._emitter = Emitter(graph, graph[0], before=True)
        axis = e.constant([1], "otter.mask_axis")
        wide = e.op("Unsqueeze", [mask, axis], "otter.mask", dtype=ir.DataType.BOOL)
        zero = e.constant(0.0, "otter.visible", dtype.numpy())
        low = e.constant(MASKED[dtype], "otter.masked", dtype.numpy())
        self._mask, self._levels, self._dtype = wide, (zero, low), dtype
        self._biases: dict[tuple[int, int | None], ir.Value] = {}
        self._symbols = {
            "B": e.op("Shape", [ids], "otter.batch", dtype=ir.DataType.INT64, start=0, end=1),
            "S": e.op("Shape", [ids], "otter.step", dtype=ir.DataType.INT64, start=1, end=2),
        }
        past = e.op("Shape", [past_key], "otter.past", dtype=ir.DataType.INT64, start=2, end=3)
        self._graph, self._past = graph, past
        self.split = e.op("Concat", [past, self._symbols["S"]], "otter.split", axis=0)
        self._shapes: dict[tuple[int | str, ...], ir.Value] = {}

    def bias(self, group: int, window: int | None) -> ir.Value:
        """The additive mask ``[B, 1, G*S, past + step]``, repeated for each head of a group."""
        if (group, window) not in self._biases:
            e, name = self._emitter, "otter.bias" if window is None else f"otter.bias.last{window}"
            if group == 1:
                bias = e.op("Where", [self._seen(window), *self._levels], name, dtype=self._dtype)
            else:
                repeats = e.constant([1, 1, group, 1], f"otter.repeats.{group}")
                bias = e.op("Tile", [self.bias(1, window), repeats], f"{name}.{group}")
            self._biases[group, window] = bias
        return self._biases[group, window]

    def _seen(self, window: int | None) -> ir.Value:
        """The mask, narrowed to a window."""
        if window is None:
            return self._mask
        return near(self._emitter, self._mask, *self._positions, window)

    @functools.cached_property
    def _positions(self) -> tuple[ir.Value, ir.Value]:
        """Those of queries and keys; slot i of a prefix holds position i."""
        e = self._emitter
        queries = next(v for v in self._graph.inputs if v.name == POSITION_IDS)
        zero, one = e.constant(0, "otter.zero"), e.constant(1, "otter.one")
        past = e.op("Squeeze", [self._past], "otter.past.scalar")
        slots = e.op("Range", [zero, past, one], "otter.slots", shape=["past"])
        size = e.op("Concat", [self._symbols["B"], self._past], "otter.prefix", axis=0)
        prefix = e.op("Expand", [slots, size], "otter.prefix.positions")
        return queries, e.op("Concat", [prefix, queries], "otter.key_positions", axis=1)

    def shape(self, *dims: int | str) -> ir.Value:
        """A shape vector; B and S stand for the batch and step sizes."""
        if dims not in self._shapes:
            e = self._emitter
            parts = [
                self._symbols[d] if isinstance(d, str) else e.constant([d], f"otter.dim.{d}")
                for d in dims
            ]
            name = "otter.shape." + "_".join(str(d) for d in dims)
            self._shapes[dims] = e.op("Concat", parts, name, axis=0, dtype=ir.DataType.INT64)
        return self._shapes[dims]


def _lower(graph: ir.Graph, node: ir.Node, shared: _Shared) -> None:
    """Replace one Attention node."""
    q, k, v, _, past_key, past_value = node.inputs[:6]
    assert q is not None and k is not None and v is not None and past_key is not None
    heads = node.attributes["q_num_heads"].as_int()
    kv_heads = node.attributes["kv_num_heads"].as_int()
    assert past_key.shape is not None
    size = int(past_key.shape[3])  # type: ignore[arg-type]
    scale, group = scale_of(node, size), heads // kv_heads
    prefix = str(node.outputs[0].name)
    e = Emitter(graph, node, before=True)

    def scores(keys: ir.Value, name: str) -> ir.Value:
        return e.op(
            "FusedMatMul",
            [query, keys],
            f"{prefix}.{name}",
            domain="com.microsoft",
            transB=1,
            alpha=scale,
        )

    def split(value: ir.Value, count: int, name: str) -> ir.Value:
        return split_heads(e, value, shared.shape("B", "S", count, size), f"{prefix}.{name}")

    query = split(q, heads, "q")
    if group > 1:
        query = e.op("Reshape", [query, shared.shape("B", kv_heads, -1, size)], f"{prefix}.grouped")
    rows = [split(value, kv_heads, name) for value, name in ((k, "k"), (v, "v"))]
    both = [scores(past_key, "past_scores"), scores(rows[0], "new_scores")]
    s = e.op("Concat", both, f"{prefix}.scores", axis=-1)
    s = capped_scores(e, node, s, prefix)
    s = e.op("Add", [s, shared.bias(group, window_of(node))], f"{prefix}.masked")
    weights = e.op("Softmax", [s], f"{prefix}.weights", axis=-1)
    names = [f"{prefix}.on_past", f"{prefix}.on_new"]
    on_past, on_new = e.nodes("Split", [weights, shared.split], names, axis=-1)
    on_new.type = weights.type
    parts = [
        e.op("MatMul", [on_past, past_value], f"{prefix}.from_past"),
        e.op("MatMul", [on_new, rows[1]], f"{prefix}.from_new"),
    ]
    y = e.op("Add", parts, f"{prefix}.rows")
    if group > 1:
        y = e.op("Reshape", [y, shared.shape("B", heads, "S", size)], f"{prefix}.heads")
    y = e.op("Transpose", [y], f"{prefix}.turned", perm=[0, 2, 1, 3])
    shape = shared.shape("B", "S", heads * size)
    joined = ["batch", "step", heads * size]
    y = e.op("Reshape", [y, shape], f"{prefix}.joined", shape=joined)
    for row in rows:
        row.shape = ir.Shape(["batch", kv_heads, "step", size])
    replace_attention(graph, node, y, rows)
