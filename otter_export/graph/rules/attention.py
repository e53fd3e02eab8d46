"""Attention: a twin with the extra heads and a cache of its own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from otter_export.engine_io import CHANNEL_CACHE
from otter_export.errors import UnsupportedError
from otter_export.graph.attention import layer_of
from otter_export.graph.emit import attributes_of
from otter_export.graph.rule import Rule, Widening


def _apply(node: ir.Node, state: Widening) -> Sequence[ir.Value | None]:
    """Attention(q, k, v, mask, past){H, Hkv} => Attention(q', k', v', mask, past'){H', H'kv}.

    Mask, scale and causality are the base's; past' are new graph inputs, their updates new outputs.
    """
    q, k, v, mask, past_key, past_value = (*node.inputs, *[None] * 6)[:6]
    missing = [x for x in (q, k, v) if x not in state.channel]
    if missing or past_key is None or past_value is None:
        raise UnsupportedError(
            f"node {node.name!r}: Attention needs q, k, v and a past of the state"
        )
    layer = layer_of(past_key)
    config, graph = state.config, state.model.graph
    caches = []
    for kind, base in (("key", past_key), ("value", past_value)):
        assert base.shape is not None
        cache = ir.Value(
            name=f"{CHANNEL_CACHE.past}.{layer}.{kind}",
            type=base.type,
            shape=ir.Shape(
                [base.shape[0], config.num_key_value_heads, base.shape[2], config.head_dim]
            ),
        )
        graph.inputs.append(cache)
        caches.append(cache)
    attributes = attributes_of(node)
    attributes["q_num_heads"] = config.num_attention_heads
    attributes["kv_num_heads"] = config.num_key_value_heads
    names = [f"{node.outputs[0].name}.otter"]
    names += [f"{CHANNEL_CACHE.present}.{layer}.{kind}" for kind in ("key", "value")]
    inputs = [state.channel[q], state.channel[k], state.channel[v], mask, *caches]  # type: ignore[index]
    shape = state.shape(node.outputs[0], config.num_attention_heads * config.head_dim)
    outputs = state.emitter(node).nodes("Attention", inputs, names, shape=shape, **attributes)
    twin = outputs[0].producer()
    assert twin is not None
    twin.metadata_props.update(node.metadata_props)  # its window
    for present, base in zip(outputs[1:], node.outputs[1:3], strict=True):
        assert base.shape is not None
        present.type = base.type
        present.shape = ir.Shape(
            [base.shape[0], config.num_key_value_heads, base.shape[2], config.head_dim]
        )
        graph.outputs.append(present)
    return [outputs[0], None, None]


RULE = Rule("Attention", _apply, "H'*e, H'kv*e -> H'*e, cache [B, H'kv, past, e]")
