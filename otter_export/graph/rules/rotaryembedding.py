"""RotaryEmbedding: the extra heads rotate by the same angles."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from otter_export.errors import UnsupportedError
from otter_export.graph.emit import attributes_of
from otter_export.graph.rule import Rule, Widening


def _apply(node: ir.Node, state: Widening) -> Sequence[ir.Value | None]:
    """RotaryEmbedding(q, cos, sin){num_heads=H} => RotaryEmbedding(q', cos, sin){num_heads=H'}."""
    x = node.inputs[0]
    assert x is not None
    attributes = attributes_of(node)
    heads = attributes.get("num_heads", 0)
    base = state.checkpoint.base.dimensions
    # Query and key differ in their number of heads only.
    counts = {
        base.num_attention_heads: state.config.num_attention_heads,
        base.num_key_value_heads: state.config.num_key_value_heads,
    }
    if heads not in counts:
        raise UnsupportedError(
            f"node {node.name!r}: num_heads {heads} is neither the base's query heads nor its "
            "key/value heads"
        )
    attributes["num_heads"] = counts[heads]
    if base.num_attention_heads == base.num_key_value_heads:
        attributes["num_heads"] = state.config.num_attention_heads
    name = f"{node.outputs[0].name}.otter"
    inputs = [state.channel[x], *node.inputs[1:]]
    shape = state.channel[x].shape
    return [state.emitter(node).op("RotaryEmbedding", inputs, name, shape=shape, **attributes)]


RULE = Rule("RotaryEmbedding", _apply, "H*e -> H'*e, same angles")
