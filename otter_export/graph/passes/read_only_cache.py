"""Attention over a cache that is read, not written: the ``read_only`` cache form."""

from __future__ import annotations

import math

import onnx_ir as ir

from otter_export.errors import UnsupportedError
from otter_export.graph.emit import Emitter

#: Added to masked scores: exp underflows to exactly 0, and a row of nothing else stays finite.
_MASKED = {ir.DataType.FLOAT: -1e30, ir.DataType.FLOAT16: -3e4}


class ReadOnlyCache(ir.passes.InPlacePass):
    """Split every softmax row over the cached prefix and the new tokens ("prefix + self").

    The prefix is never copied, the outputs are the new rows only, and the mask is free: new tokens
    may form any tree. Measured against GroupQueryAttention and Attention in docs/performance.md.

    Before::

        y, present_k, present_v = Attention(q, k, v, mask, past_k, past_v)

    After (G = H / Hkv; the mask input becomes bool ``[batch, step, past + step]``)::

        q = heads(q) [B, Hkv, G*S, e]       k, v = heads(k), heads(v) [B, Hkv, S, e]  -> outputs
        s = [scale q past_k^T , scale q k^T] + bias;   p, p_new = Split(Softmax(s))
        y = p past_v + p_new v
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        graph = model.graph
        attentions = [n for n in graph if n.op_type == "Attention"]
        if not attentions:
            return ir.passes.PassResult(model, modified=False)
        mask = _replace_mask_input(graph)
        shared = _Shared(graph, attentions[0], mask)
        for node in attentions:
            _lower(graph, node, shared)
        model.graph.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified=True)


class _Shared:
    """Values that all layers use: the additive mask, the split sizes and the batch/step sizes."""

    def __init__(self, graph: ir.Graph, first: ir.Node, mask: ir.Value) -> None:
        ids = next(v for v in graph.inputs if v.name == "input_ids")
        past_key = first.inputs[4]
        assert past_key is not None
        dtype = past_key.dtype or ir.DataType.FLOAT
        # At the head of the graph, so that every layer may use them.
        e = Emitter(graph, graph[0], before=True)
        axes = e.constant([1, 2], "otter.mask_axes")
        wide = e.op("Unsqueeze", [mask, axes], "otter.mask", dtype=ir.DataType.BOOL)
        zero = e.constant(0.0, "otter.visible", dtype.numpy())
        low = e.constant(_MASKED[dtype], "otter.masked", dtype.numpy())
        self.bias = e.op("Where", [wide, zero, low], "otter.bias", dtype=dtype)
        self.batch = e.op("Shape", [ids], "otter.batch", dtype=ir.DataType.INT64, start=0, end=1)
        self.step = e.op("Shape", [ids], "otter.step", dtype=ir.DataType.INT64, start=1, end=2)
        self.past = e.op(
            "Shape", [past_key], "otter.past", dtype=ir.DataType.INT64, start=2, end=3
        )
        self.split = e.op("Concat", [self.past, self.step], "otter.split", axis=0)
        total = e.op("Add", [self.past, self.step], "otter.total")
        self._symbols = {"B": self.batch, "S": self.step, "T": total}
        self._emitter = e
        self._shapes: dict[tuple[int | str, ...], ir.Value] = {}

    def shape(self, *dims: int | str) -> ir.Value:
        """A shape vector; B, S and T stand for the batch, step and past + step sizes."""
        if dims not in self._shapes:
            e = self._emitter
            parts = [
                self._symbols[d]
                if isinstance(d, str)
                else e.constant([d], f"otter.dim.{d}")
                for d in dims
            ]
            name = "otter.shape." + "_".join(str(d) for d in dims)
            self._shapes[dims] = e.op("Concat", parts, name, axis=0, dtype=ir.DataType.INT64)
        return self._shapes[dims]


def _lower(graph: ir.Graph, node: ir.Node, shared: _Shared) -> None:
    """Replace one Attention node."""
    q, k, v, _, past_key, past_value = node.inputs[:6]
    heads = node.attributes["q_num_heads"].as_int()
    kv_heads = node.attributes["kv_num_heads"].as_int()
    assert past_key is not None and past_key.shape is not None
    size = int(past_key.shape[3])  # type: ignore[arg-type]
    scale = _scale(node, size)
    group = heads // kv_heads
    prefix = str(node.outputs[0].name)
    e = Emitter(graph, node, before=True)

    def fused(a: ir.Value, b: ir.Value | None, name: str) -> ir.Value:
        return e.op(
            "FusedMatMul", [a, b], f"{prefix}.{name}", domain="com.microsoft", transB=1, alpha=scale
        )

    q5 = e.op("Reshape", [q, shared.shape("B", "S", kv_heads, group, size)], f"{prefix}.q5")
    q5 = e.op("Transpose", [q5], f"{prefix}.q5t", perm=[0, 2, 3, 1, 4])
    grouped = e.op("Reshape", [q5, shared.shape("B", kv_heads, -1, size)], f"{prefix}.q")
    rows = []
    for value, name in ((k, "k"), (v, "v")):
        row = e.op("Reshape", [value, shared.shape("B", "S", kv_heads, size)], f"{prefix}.{name}4")
        rows.append(e.op("Transpose", [row], f"{prefix}.{name}", perm=[0, 2, 1, 3]))
    scores = e.op(
        "Concat",
        [fused(grouped, past_key, "prefix_scores"), fused(grouped, rows[0], "new_scores")],
        f"{prefix}.scores",
        axis=-1,
    )
    wide = e.op("Reshape", [scores, shared.shape("B", kv_heads, group, "S", "T")], f"{prefix}.scores5")
    masked = e.op("Add", [wide, shared.bias], f"{prefix}.masked")
    weights = e.op("Softmax", [masked], f"{prefix}.softmax", axis=-1)
    flat = e.op("Reshape", [weights, shared.shape("B", kv_heads, -1, "T")], f"{prefix}.weights")
    on_past, on_new = e.nodes(
        "Split", [flat, shared.split], [f"{prefix}.on_past", f"{prefix}.on_new"], axis=-1
    )
    on_new.type = flat.type
    parts = [
        e.op("MatMul", [on_past, past_value], f"{prefix}.from_past"),
        e.op("MatMul", [on_new, rows[1]], f"{prefix}.from_new"),
    ]
    y = e.op("Add", parts, f"{prefix}.grouped")
    y = e.op("Reshape", [y, shared.shape("B", kv_heads, group, "S", size)], f"{prefix}.y5")
    y = e.op("Transpose", [y], f"{prefix}.y5t", perm=[0, 3, 1, 2, 4])
    y = e.op("Reshape", [y, shared.shape("B", "S", heads * size)], f"{prefix}.joined")
    y.shape = ir.Shape(["batch", "step", heads * size])
    _rewire(graph, node, y, rows, kv_heads, size)


def _rewire(
    graph: ir.Graph, node: ir.Node, y: ir.Value, rows: list[ir.Value], kv_heads: int, size: int
) -> None:
    """Use the new values; the new rows take over the names of the present outputs."""
    ir.convenience.replace_all_uses_with(node.outputs[0], y)
    for old, new in zip(node.outputs[1:3], rows, strict=True):
        index = list(graph.outputs).index(old)
        new.name, old.name = old.name, f"{old.name}.unused"
        new.type, new.shape = old.type, ir.Shape(["batch", kv_heads, "step", size])
        graph.outputs[index] = new
    graph.remove(node, safe=True)


def _scale(node: ir.Node, size: int) -> float:
    softcap = node.attributes.get("softcap")
    if softcap is not None and softcap.as_float() != 0.0:
        raise UnsupportedError(f"node {node.name!r}: attention with softcap has no read-only form")
    scale = node.attributes.get("scale")
    return 1.0 / math.sqrt(size) if scale is None else scale.as_float()


def _replace_mask_input(graph: ir.Graph) -> ir.Value:
    """A bool mask ``[batch, step, past + step]`` in the place of the padding mask."""
    index = next(i for i, v in enumerate(graph.inputs) if v.name == "attention_mask")
    old = graph.inputs[index]
    old.name = "padding_mask.unused"
    mask = ir.Value(
        name="attention_mask",
        shape=ir.Shape(["batch", "step", "past + step"]),
        type=ir.TensorType(ir.DataType.BOOL),
    )
    graph.inputs[index] = mask
    return mask
