"""Attention over a cache of static capacity, updated where it lies: the ``in_place`` cache form."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from otter_export.channel import first_heads
from otter_export.engine_io import POSITION_IDS
from otter_export.graph.attention import (
    MASKED,
    capped_scores,
    head_counts,
    is_capped,
    replace_attention,
    scale_of,
    split_heads,
)
from otter_export.graph.emit import Emitter
from otter_export.graph.in_place import in_place_inputs, slot_positions, updated
from otter_export.graph.shared_attention import base_of, take
from otter_export.graph.windows import near, window_of


class InPlaceCache(ir.passes.InPlacePass):
    """Scatter a step's rows into the caches, then attend to the whole capacity under a bool mask.

    TensorRT makes KVCacheUpdate and Attention layers of it: past and present are bound to one
    address, and nothing is copied. The cache must be a graph input and its update a graph output.
    The mask is free, so a step's tokens may form any tree over the committed prefix; a layer with a
    window narrows it. Attention with a soft cap is written out, since builders differ in whether
    the cap comes before the mask.

    Before::

        y, present_k, present_v = Attention(rotate(q), rotate(k), v, mask, past_k, past_v)

    After (C: capacity; the mask input becomes bool ``[batch, 1, step, C]``, and int64
    ``write_indices [batch]`` is the slot of each sequence's first new row)::

        q, k, v = rotate(heads(q)), rotate(heads(k)), heads(v)     [B, H or Hkv, S, e]
        present_k = TensorScatter(past_k, k, write_indices)        [B, Hkv, C, e]
        present_v = TensorScatter(past_v, v, write_indices)
        y = joined(Attention(q, present_k, present_v, mask))       [B, S, H*e], not causal

    An attention that shares the base's reads the first heads of the base's q and present_k.
    """

    def __init__(self, capacity: int) -> None:
        """``capacity``: rows of every cache, committed prefix and the longest step together."""
        super().__init__()
        self._capacity = capacity
        #: Queries and updated keys of the base's attentions, by their names: twins read them.
        self._lowered: dict[str, tuple[ir.Value, ir.Value]] = {}

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        attentions = [n for n in graph if n.op_type == "Attention"]
        if not attentions or any(len(n.inputs) < 6 for n in attentions):  # none, or lowered before
            return ir.passes.PassResult(model, modified=False)
        mask, slots = in_place_inputs(graph, self._capacity)
        masks = _Masks(graph, mask, slots, self._capacity)
        for node in attentions:
            self._lower(graph, node, masks, slots)
        return ir.passes.PassResult(model, modified=True)

    def _lower(self, graph: ir.Graph, node: ir.Node, masks: _Masks, slots: ir.Value) -> None:
        """Replace one Attention node."""
        q, k, v, _, past_key, past_value = node.inputs[:6]
        heads, kv_heads = head_counts(node)
        size = _size(past_value, 3)
        prefix, base = str(node.outputs[0].name), base_of(node)
        e = Emitter(graph, node, before=True)

        def split(value: ir.Value | None, count: int, name: str) -> ir.Value:
            assert value is not None
            # A Transpose of one head too: without it TensorRT-RTX 1.7 ends on OLMo 2.
            shape = e.constant([0, 0, count, size], f"otter.split.{count}.{size}")
            dims: list[int | str] = ["batch", count, "step", size]
            return split_heads(e, value, shape, f"{prefix}.{name}", dims)

        def cache(past: ir.Value | None, rows: ir.Value, name: str) -> ir.Value:
            return updated(e, past, rows, slots, self._capacity, f"{prefix}.{name}.cache")

        if base is None:
            query = split(q, heads, "q")
            keys = cache(past_key, split(k, kv_heads, "k"), "k")
            self._lowered[str(node.name)] = query, keys
        else:
            query, keys = _of_base_heads(e, self._lowered[base], heads, kv_heads, prefix)
        values = cache(past_value, split(v, kv_heads, "v"), "v")
        mask, dims = masks.of(window_of(node)), ["batch", heads, "step", size]
        if is_capped(node):
            y = _written_out(e, node, query, (keys, values), mask)
        else:
            own = {"scale": scale_of(node, size)} if "scale" in node.attributes else {}
            y = e.op("Attention", [query, keys, values, mask], f"{prefix}.rows", shape=dims, **own)
        y = e.op("Transpose", [y], f"{prefix}.turned", perm=[0, 2, 1, 3])
        width = heads * size
        shape = e.constant([0, 0, width], f"otter.join.{width}")
        joined: list[int | str] = ["batch", "step", width]
        y = e.op("Reshape", [y, shape], f"{prefix}.joined", shape=joined)
        replace_attention(graph, node, y, [keys if base is None else None, values])


def _of_base_heads(
    e: Emitter, base: tuple[ir.Value, ir.Value], heads: int, kv_heads: int, prefix: str
) -> tuple[ir.Value, ir.Value]:
    """The queries and keys of a base's first heads, ``[B, H', S, e]`` and ``[B, H'kv, C, e]``."""
    queries, keys = base
    group = _size(queries, 1) // _size(keys, 1)
    query = take(e, queries, first_heads(heads, kv_heads, group), 1, f"{prefix}.q")
    if kv_heads < _size(keys, 1):
        return query, take(e, keys, np.arange(kv_heads), 1, f"{prefix}.k")
    # TensorRT-RTX 1.7 ends where two attentions read one value as keys, and sees through a Slice of
    # all of it.
    index = e.constant(np.arange(kv_heads), f"otter.heads.{kv_heads}")
    return query, e.op("Gather", [keys, index], f"{prefix}.k", shape=keys.shape, axis=1)


def _size(value: ir.Value | None, axis: int) -> int:
    assert value is not None and value.shape is not None
    return int(value.shape[axis])  # type: ignore[arg-type]


class _Masks:
    """The mask, and what windows leave of it; each is made once, at the head of the graph."""

    def __init__(self, graph: ir.Graph, mask: ir.Value, slots: ir.Value, capacity: int) -> None:
        self._emitter = Emitter(graph, graph[0], before=True)
        self._made: dict[int | None, ir.Value] = {None: mask}
        self._graph, self._slots, self._capacity = graph, slots, capacity

    def of(self, window: int | None) -> ir.Value:
        """Bool ``[batch, 1, step, C]``."""
        if window not in self._made:
            assert window is not None
            self._made[window] = near(self._emitter, self._made[None], *self._positions, window)
        return self._made[window]

    @functools.cached_property
    def _positions(self) -> tuple[ir.Value, ir.Value]:
        """Those of queries, ``[batch, step]``, and of keys, ``[batch, C]``."""
        positions = next(v for v in self._graph.inputs if v.name == POSITION_IDS)
        e = self._emitter
        slots = e.constant(np.arange(self._capacity)[None], "otter.slots")
        return positions, slot_positions(e, slots, positions, self._slots, self._capacity)


def _written_out(
    e: Emitter, node: ir.Node, query: ir.Value, presents: Sequence[ir.Value], mask: ir.Value
) -> ir.Value:
    """``Softmax(where(mask, cap(scale q k^T), low)) v``, ``[B, H, S, e]``; see `InPlaceCache`."""
    heads, size, kv_heads = _size(query, 1), _size(query, 3), _size(presents[0], 1)
    group, prefix = heads // kv_heads, str(node.outputs[0].name)
    dtype = query.dtype or ir.DataType.FLOAT

    def grouped(value: ir.Value, name: str, *dims: int) -> ir.Value:
        shape = e.constant([0, *dims], "otter.capped." + "_".join(map(str, dims)))
        return e.op("Reshape", [value, shape], f"{prefix}.{name}")

    rows = grouped(query, "grouped", kv_heads, group, -1, size)
    axis = e.constant([2], "otter.group_axis")
    keys, values = (e.op("Unsqueeze", [p, axis], f"{p.name}.grouped") for p in presents)
    keys = e.op("Transpose", [keys], f"{prefix}.keys", perm=[0, 1, 2, 4, 3])
    scale = e.constant(scale_of(node, size), f"otter.scale.{scale_of(node, size):g}", dtype.numpy())
    rows = e.op("Mul", [rows, scale], f"{prefix}.scaled")
    s = capped_scores(e, node, e.op("MatMul", [rows, keys], f"{prefix}.scores"), prefix)
    seen = e.op("Unsqueeze", [mask, axis], f"{prefix}.mask", dtype=ir.DataType.BOOL)
    low = e.constant(MASKED[dtype], "otter.masked", dtype.numpy())
    s = e.op("Where", [seen, s, low], f"{prefix}.masked", dtype=dtype)
    weights = e.op("Softmax", [s], f"{prefix}.weights", axis=-1)
    y = e.op("MatMul", [weights, values], f"{prefix}.grouped_rows")
    return grouped(y, "rows", heads, -1, size)
