"""The Attention of the hub graph, taken apart: what both cache forms do with it."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from otter_export.engine_io import ATTENTION_MASK
from otter_export.errors import UnsupportedError
from otter_export.graph.emit import Dimensions, Emitter, attributes_of


def replace_mask(graph: ir.Graph, shape: Dimensions) -> ir.Value:
    """A bool mask of this shape in the place of the padding mask."""
    index = next(i for i, v in enumerate(graph.inputs) if v.name == ATTENTION_MASK)
    graph.inputs[index].name = "padding_mask.unused"
    mask = ir.Value(
        name=ATTENTION_MASK, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.BOOL)
    )
    graph.inputs[index] = mask
    return mask


def scale_of(node: ir.Node, form: str) -> float | None:
    """The attention's own scale; None for 1/sqrt(e).

    Raises:
        UnsupportedError: It has a softcap, which the cache form ``form`` has not.
    """
    softcap = node.attributes.get("softcap")
    if softcap is not None and softcap.as_float() != 0.0:
        raise UnsupportedError(f"node {node.name!r}: attention with softcap has no {form} form")
    scale = node.attributes.get("scale")
    return None if scale is None else scale.as_float()


def split_heads(
    e: Emitter, value: ir.Value, shape: ir.Value, name: str, dims: Dimensions | None = None
) -> ir.Value:
    """``[B, S, count*e]`` to ``[B, count, S, e]``, rotated after the split if it was before.

    Args:
        e: Where to emit.
        value: Queries, keys or values of all heads.
        shape: The shape ``[B, S, count, e]``, as a value.
        name: Prefix of the names.
        dims: The shape of the result, as it is noted in the graph.
    """
    rotation = value.producer()
    if rotation is not None and rotation.op_type != "RotaryEmbedding":
        rotation = None
    flat = value if rotation is None else rotation.inputs[0]
    x = e.op("Reshape", [flat, shape], f"{name}.split")
    x = e.op("Transpose", [x], f"{name}.heads", perm=[0, 2, 1, 3], shape=dims)
    if rotation is None:
        return x
    # num_heads is for three-dimensional inputs only (opset 23).
    attributes = attributes_of(rotation)
    attributes.pop("num_heads", None)
    inputs = [x, *rotation.inputs[1:]]
    return e.op("RotaryEmbedding", inputs, f"{name}.rotated", shape=dims, **attributes)


def replace_attention(
    graph: ir.Graph, node: ir.Node, y: ir.Value, presents: Sequence[ir.Value]
) -> None:
    """Put values in the place of an Attention's: its output, and what of keys and values comes out.

    The latter take over the names of the present outputs.
    """
    ir.convenience.replace_all_uses_with(node.outputs[0], y)
    for old, new in zip(node.outputs[1:3], presents, strict=True):
        new.name, old.name = old.name, f"{old.name}.unused"
        new.type = old.type
        graph.outputs[list(graph.outputs).index(old)] = new
    graph.remove(node, safe=True)
