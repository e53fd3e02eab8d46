"""Attention over a cache that is read, not written: the ``read_only`` cache form."""

from __future__ import annotations

import functools

import onnx_ir as ir

from otter_export.engine_io import INPUT_IDS, POSITION_IDS
from otter_export.graph.attention import (
    MASKED,
    capped_scores,
    head_counts,
    replace_attention,
    replace_mask,
    scale_of,
    split_heads,
)
from otter_export.graph.emit import Emitter
from otter_export.graph.shared_attention import base_of
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

    An attention that shares the base's has neither q nor k: its p and p_new are Slices of theirs.
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


#: What an Attention gives to cached and to new rows: ``[B, Hkv, G*S, P]``, ``[B, Hkv, G*S, S]``.
_Weights = tuple[ir.Value, ir.Value]


class _Shared:
    """Values that all layers use, at the head of the graph, and what of the base twins read."""

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
        self._ends: dict[tuple[int | None, int | None], list[ir.Value]] = {}
        assert past_key.shape is not None
        self.size = int(past_key.shape[3])  # type: ignore[arg-type]
        self.lowered: dict[str, tuple[ir.Node, _Weights]] = {}

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

    def heads(self, e: Emitter, value: ir.Value | None, count: int, name: str) -> ir.Value:
        """A layer's queries, keys or values by heads, ``[B, count, S, e]``."""
        assert value is not None
        dims = ("B", 1, "S", self.size) if count == 1 else ("B", "S", count, self.size)
        named: list[int | str] = ["batch", count, "step", self.size]
        shape = self.shape(*dims)
        return split_heads(e, value, shape, name, named, transpose=count > 1)

    def ends(self, kv_heads: int | None, group: int | None) -> list[ir.Value]:
        """The inputs of a Slice of weights ``[B, Hkv, G*S, ...]`` to fewer heads; none for None."""
        if (kv_heads, group) not in self._ends:
            e = self._emitter
            ends = {} if kv_heads is None else {1: e.constant([kv_heads], f"otter.dim.{kv_heads}")}
            if group is not None:
                factor = e.constant([group], f"otter.dim.{group}")
                ends[2] = e.op("Mul", [self._symbols["S"], factor], f"otter.group.{group}")
            end = list(ends.values())
            if len(end) > 1:
                end = [e.op("Concat", end, f"otter.heads.{kv_heads}.{group}", axis=0)]
            first = e.constant([0] * len(ends), f"otter.firsts.{len(ends)}")
            axes = e.constant([*ends], "otter.axes." + ".".join(map(str, ends)))
            self._ends[kv_heads, group] = [first, *end, axes] if ends else []
        return self._ends[kv_heads, group]


def _lower(graph: ir.Graph, node: ir.Node, shared: _Shared) -> None:
    """Replace one Attention node."""
    values, past_value = node.inputs[2], node.inputs[5]
    heads, kv_heads = head_counts(node)
    prefix, base = str(node.outputs[0].name), base_of(node)
    e = Emitter(graph, node, before=True)
    new_values = shared.heads(e, values, kv_heads, f"{prefix}.v")
    if base is None:
        new_keys, weights = _weights(e, node, shared)
        shared.lowered[str(node.name)] = node, weights
    else:
        new_keys, weights = None, _of_base_heads(e, node, shared, *shared.lowered[base])
    parts = [
        e.op("MatMul", [weights[0], past_value], f"{prefix}.from_past"),
        e.op("MatMul", [weights[1], new_values], f"{prefix}.from_new"),
    ]
    y = e.op("Add", parts, f"{prefix}.rows")
    if heads > kv_heads:
        y = e.op("Reshape", [y, shared.shape("B", heads, "S", shared.size)], f"{prefix}.heads")
    if heads > 1:
        y = e.op("Transpose", [y], f"{prefix}.turned", perm=[0, 2, 1, 3])
    width = heads * shared.size
    joined = ["batch", "step", width]
    y = e.op("Reshape", [y, shared.shape("B", "S", width)], f"{prefix}.joined", shape=joined)
    replace_attention(graph, node, y, [new_keys, new_values])


def _weights(e: Emitter, node: ir.Node, shared: _Shared) -> tuple[ir.Value, _Weights]:
    """The new keys ``[B, Hkv, S, e]`` of an Attention, and its weights."""
    queries, keys, past_key = node.inputs[0], node.inputs[1], node.inputs[4]
    heads, kv_heads = head_counts(node)
    group, prefix = heads // kv_heads, str(node.outputs[0].name)
    query = shared.heads(e, queries, heads, f"{prefix}.q")
    if group > 1:
        grouped = shared.shape("B", kv_heads, -1, shared.size)
        query = e.op("Reshape", [query, grouped], f"{prefix}.grouped")
    new_keys = shared.heads(e, keys, kv_heads, f"{prefix}.k")
    both = [
        e.op(
            "FusedMatMul",
            [query, one],
            f"{prefix}.{name}",
            domain="com.microsoft",
            transB=1,
            alpha=scale_of(node, shared.size),
        )
        for one, name in ((past_key, "past_scores"), (new_keys, "new_scores"))
    ]
    s = e.op("Concat", both, f"{prefix}.scores", axis=-1)
    s = capped_scores(e, node, s, prefix)
    s = e.op("Add", [s, shared.bias(group, window_of(node))], f"{prefix}.masked")
    weights = e.op("Softmax", [s], f"{prefix}.weights", axis=-1)
    names = [f"{prefix}.on_past", f"{prefix}.on_new"]
    on_past, on_new = e.nodes("Split", [weights, shared.split], names, axis=-1)
    on_new.type = weights.type
    return new_keys, (on_past, on_new)


def _of_base_heads(
    e: Emitter, node: ir.Node, shared: _Shared, base: ir.Node, weights: _Weights
) -> _Weights:
    """Those of a base's weights that its twin reads: the first heads of the first groups."""
    (heads, kv_heads), (base_heads, base_kv_heads) = map(head_counts, (node, base))
    group, prefix = heads // kv_heads, str(node.outputs[0].name)
    ends = shared.ends(
        kv_heads if kv_heads < base_kv_heads else None,
        group if group < base_heads // base_kv_heads else None,
    )
    if not ends:
        return weights
    names = [f"{prefix}.on_past", f"{prefix}.on_new"]
    sliced = [e.op("Slice", [w, *ends], n) for w, n in zip(weights, names, strict=True)]
    return sliced[0], sliced[1]
