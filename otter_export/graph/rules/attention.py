"""Attention: a twin with the extra heads, and a cache of its own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from otter_export.engine_io import CACHE_PARTS, CHANNEL_CACHE, present_of
from otter_export.errors import UnsupportedError
from otter_export.graph.attention import layer_of
from otter_export.graph.emit import Dimensions, attributes_of
from otter_export.graph.rule import Rule, Widening
from otter_export.graph.shared_attention import note_base, share


def _apply(node: ir.Node, state: Widening) -> Sequence[ir.Value | None]:
    """Attention(q, k, v, mask, past){H, Hkv} => Attention(q', k', v', mask, past'){H', H'kv}.

    Mask, scale and causality are the base's; past' are new graph inputs, their updates new outputs.
    Where attention is shared, q', k' and the past keys are those of base heads, and past' and its
    update are values alone.
    """
    q, k, v, mask, past_key, past_value = (*node.inputs, *[None] * 6)[:6]
    shared = state.config.attention == "shared"
    missing = [x for x in ((v,) if shared else (q, k, v)) if x not in state.channel]
    if missing or past_key is None or past_value is None:
        raise UnsupportedError(
            f"node {node.name!r}: Attention needs q, k, v and a past of the state"
        )
    config, graph, e = state.config, state.model.graph, state.emitter(node)
    owned = CACHE_PARTS[config.attention]
    dims = [past_value.shape[0], config.num_key_value_heads, past_value.shape[2], config.head_dim]  # type: ignore[index]
    prefix = f"{CHANNEL_CACHE.past}.{layer_of(past_key)}"
    pasts = {part: _cache(f"{prefix}.{part}", past_value, dims) for part in owned}
    graph.inputs.extend(pasts.values())
    if shared:
        queries, keys, pasts["key"] = share(e, node, state)
    else:
        queries, keys = state.channel[q], state.channel[k]  # type: ignore[index]
    inputs = [queries, keys, state.channel[v], mask, pasts["key"], pasts["value"]]  # type: ignore[index]
    attributes = attributes_of(node)
    attributes["q_num_heads"] = config.num_attention_heads
    attributes["kv_num_heads"] = config.num_key_value_heads
    y = f"{node.outputs[0].name}.otter"
    names = [y, *(present_of(f"{prefix}.{part}") for part in CACHE_PARTS["own"])]
    shape = state.shape(node.outputs[0], config.num_attention_heads * config.head_dim)
    outputs = e.nodes("Attention", inputs, names, shape=shape, **attributes)
    twin = outputs[0].producer()
    assert twin is not None
    twin.metadata_props.update(node.metadata_props)  # its window
    if shared:
        note_base(twin, node)
    presents = dict(zip(CACHE_PARTS["own"], outputs[1:], strict=True))
    for part in owned:
        presents[part].type = past_value.type
        presents[part].shape = ir.Shape([*dims[:2], node.outputs[2].shape[2], dims[3]])  # type: ignore[index]
        graph.outputs.append(presents[part])
    return [outputs[0], None, None]


def _cache(name: str, like: ir.Value, dims: Dimensions) -> ir.Value:
    return ir.Value(name=name, type=like.type, shape=ir.Shape(dims))


RULE = Rule("Attention", _apply, "H'*e, H'kv*e -> H'*e, cache [B, H'kv, past, e]")
