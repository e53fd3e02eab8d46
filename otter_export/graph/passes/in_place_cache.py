"""Attention over a cache of static capacity, updated where it lies: the ``in_place`` cache form."""

from __future__ import annotations

import onnx_ir as ir

from otter_export.engine_io import INPUT_IDS, POSITION_IDS, WRITE_INDICES
from otter_export.graph.attention import replace_attention, replace_mask, scale_of, split_heads
from otter_export.graph.emit import Emitter

_SEQUENCE_AXIS = -2


class InPlaceCache(ir.passes.InPlacePass):
    """Scatter a step's rows into the caches, then attend to the whole capacity under a bool mask.

    TensorRT makes KVCacheUpdate and Attention layers of it: past and present are bound to one
    address, and nothing is copied. The cache must be a graph input and its update a graph output.
    The mask is free, so a step's tokens may form any tree over the committed prefix.

    Before::

        y, present_k, present_v = Attention(rotate(q), rotate(k), v, mask, past_k, past_v)

    After (C: capacity; the mask input becomes bool ``[batch, 1, step, C]``, and int64
    ``write_indices [batch]`` is the slot of each sequence's first new row)::

        q, k, v = rotate(heads(q)), rotate(heads(k)), heads(v)     [B, H or Hkv, S, e]
        present_k = TensorScatter(past_k, k, write_indices)        [B, Hkv, C, e]
        present_v = TensorScatter(past_v, v, write_indices)
        y = joined(Attention(q, present_k, present_v, mask))       [B, S, H*e], not causal
    """

    def __init__(self, capacity: int) -> None:
        """``capacity``: rows of every cache, committed prefix and the longest step together."""
        super().__init__()
        self._capacity = capacity

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        attentions = [n for n in graph if n.op_type == "Attention"]
        if not attentions or any(len(n.inputs) < 6 for n in attentions):  # none, or lowered before
            return ir.passes.PassResult(model, modified=False)
        mask, slots = self._inputs(graph)
        for node in attentions:
            self._lower(graph, node, mask, slots)
        return ir.passes.PassResult(model, modified=True)

    def _inputs(self, graph: ir.Graph) -> tuple[ir.Value, ir.Value]:
        """The new mask in the place of the padding mask, and the write indices at the end."""
        mask = replace_mask(graph, ["batch", 1, "step", self._capacity])
        for value in graph.inputs:
            if value.name in (INPUT_IDS, POSITION_IDS):
                value.shape = ir.Shape(["batch", "step"])
        slots = ir.Value(
            name=WRITE_INDICES, shape=ir.Shape(["batch"]), type=ir.TensorType(ir.DataType.INT64)
        )
        graph.inputs.insert(list(graph.inputs).index(mask) + 1, slots)
        return mask, slots

    def _lower(self, graph: ir.Graph, node: ir.Node, mask: ir.Value, slots: ir.Value) -> None:
        """Replace one Attention node."""
        q, k, v, _, past_key, past_value = node.inputs[:6]
        assert q is not None and k is not None and v is not None
        assert past_key is not None and past_value is not None and past_key.shape is not None
        heads = node.attributes["q_num_heads"].as_int()
        kv_heads, size = (int(past_key.shape[i]) for i in (1, 3))  # type: ignore[arg-type]
        prefix = str(node.outputs[0].name)
        e = Emitter(graph, node, before=True)

        def split(value: ir.Value, count: int, name: str) -> ir.Value:
            shape = e.constant([0, 0, count, size], f"otter.split.{count}.{size}")
            return split_heads(e, value, shape, f"{prefix}.{name}", ["batch", count, "step", size])

        scale = scale_of(node, "in-place")
        query = split(q, heads, "q")
        presents = []
        for value, past, kind in ((k, past_key, "k"), (v, past_value, "v")):
            rows = split(value, kv_heads, kind)
            past.shape = ir.Shape(["batch", kv_heads, self._capacity, size])
            presents.append(
                e.op(
                    "TensorScatter",
                    [past, rows, slots],
                    f"{prefix}.{kind}.cache",
                    shape=past.shape,
                    axis=_SEQUENCE_AXIS,
                    mode="linear",
                )
            )
        y = e.op(
            "Attention",
            [query, *presents, mask],
            f"{prefix}.rows",
            shape=["batch", heads, "step", size],
            **({} if scale is None else {"scale": scale}),
        )
        y = e.op("Transpose", [y], f"{prefix}.turned", perm=[0, 2, 1, 3])
        width = heads * size
        shape = e.constant([0, 0, width], f"otter.join.{width}")
        joined: list[int | str] = ["batch", "step", width]
        y = e.op("Reshape", [y, shape], f"{prefix}.joined", shape=joined)
        replace_attention(graph, node, y, presents)
