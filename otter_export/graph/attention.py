"""The Attention of the hub graph, taken apart: what both cache forms do with it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import onnx_ir as ir

from otter_export.engine_io import ATTENTION_MASK, BASE_CACHE, CHANNEL_CACHE
from otter_export.errors import UnsupportedError
from otter_export.graph.emit import Dimensions, Emitter, attributes_of

_LAYER = re.compile(rf"(?:{BASE_CACHE.past}|{CHANNEL_CACHE.past})\.(\d+)\.key")

#: Scores that are masked: exp underflows to exactly 0, and a row of nothing else stays finite.
MASKED = {
    ir.DataType.FLOAT: -1e30,
    ir.DataType.FLOAT16: -3e4,
    ir.DataType.BFLOAT16: -1e30,
}


def layer_of(past: ir.Value | None) -> int:
    """N of a graph input ``past_key_values.N.key``.

    Raises:
        UnsupportedError: The attention reads its past from elsewhere.
    """
    match = _LAYER.fullmatch(str(past.name) if past is not None else "")
    if match is None:
        raise UnsupportedError(f"an Attention without {BASE_CACHE.past}.N inputs cannot be widened")
    return int(match[1])


def replace_mask(graph: ir.Graph, shape: Dimensions) -> ir.Value:
    """A bool mask of this shape in the place of the padding mask."""
    index = next(i for i, v in enumerate(graph.inputs) if v.name == ATTENTION_MASK)
    graph.inputs[index].name = "padding_mask.unused"
    mask = ir.Value(
        name=ATTENTION_MASK, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.BOOL)
    )
    graph.inputs[index] = mask
    return mask


def scale_of(node: ir.Node, size: int) -> float:
    """What an Attention multiplies its scores by: its own scale, or 1/sqrt of the head size."""
    scale = node.attributes.get("scale")
    return 1.0 / math.sqrt(size) if scale is None else scale.as_float()


def head_counts(node: ir.Node) -> tuple[int, int]:
    """Query heads and key/value heads of an Attention."""
    return node.attributes["q_num_heads"].as_int(), node.attributes["kv_num_heads"].as_int()


def is_capped(node: ir.Node) -> bool:
    """Whether an Attention's scores have a soft cap."""
    return "softcap" in node.attributes and node.attributes["softcap"].as_float() != 0.0


def capped_scores(e: Emitter, node: ir.Node, scores: ir.Value, prefix: str) -> ir.Value:
    """``c tanh(s / c)`` of the scores of an Attention with a soft cap c (Gemma 2); else ``s``."""
    if not is_capped(node):
        return scores
    cap = node.attributes["softcap"].as_float()
    limit = e.constant(cap, f"otter.softcap.{cap:g}", (scores.dtype or ir.DataType.FLOAT).numpy())
    s = e.op("Div", [scores, limit], f"{prefix}.uncapped")
    s = e.op("Tanh", [s], f"{prefix}.tanh")
    return e.op("Mul", [s, limit], f"{prefix}.capped")


def split_heads(
    e: Emitter,
    value: ir.Value,
    shape: ir.Value,
    name: str,
    dims: Dimensions | None = None,
    *,
    transpose: bool = True,
) -> ir.Value:
    """``[B, S, count*e]`` to ``[B, count, S, e]``, rotated after the split if it was before.

    Args:
        e: Where to emit.
        value: Queries, keys or values of all heads.
        shape: The shape ``[B, S, count, e]``, as a value.
        name: Prefix of the names.
        dims: The shape of the result, as it is noted in the graph.
        transpose: False for a single head, of which ``shape`` is ``[B, 1, S, e]`` already.
    """
    rotation = value.producer()
    if rotation is not None and rotation.op_type != "RotaryEmbedding":
        rotation = None
    flat = value if rotation is None else rotation.inputs[0]
    x = e.op("Reshape", [flat, shape], f"{name}.split")
    x = e.op("Transpose", [x], f"{name}.heads", perm=[0, 2, 1, 3]) if transpose else x
    x.shape = None if dims is None else ir.Shape(dims)
    if rotation is None:
        return x
    # num_heads is for three-dimensional inputs only (opset 23).
    attributes = attributes_of(rotation)
    attributes.pop("num_heads", None)
    inputs = [x, *rotation.inputs[1:]]
    return e.op("RotaryEmbedding", inputs, f"{name}.rotated", shape=dims, **attributes)


def replace_attention(
    graph: ir.Graph, node: ir.Node, y: ir.Value, presents: Sequence[ir.Value | None]
) -> None:
    """Put values in the place of an Attention's: its output, and what of keys and values comes out.

    The latter take over the names of the present outputs; None where there is no such output.
    """
    ir.convenience.replace_all_uses_with(node.outputs[0], y)
    for old, new in zip(node.outputs[1:3], presents, strict=True):
        if new is not None:
            new.name, old.name = old.name, f"{old.name}.unused"
            new.type = old.type
            graph.outputs[list(graph.outputs).index(old)] = new
    graph.remove(node, safe=True)
