"""Every kind of attention reads a mask value of its own."""

from __future__ import annotations

import onnx_ir as ir

from otter_export.engine_io import CHANNEL_CACHE
from otter_export.graph.emit import Emitter


class SeparateMasks(ir.passes.InPlacePass):
    """Give the base's attention, the channel's, and the masks of windows one mask value each.

    TensorRT-RTX 1.7 names what it derives from a mask after the mask, and so cannot build two
    attentions of different kernels that share one ("Graph contains more than one op named
    attention_mask.1_iota"). A window counts as well, since its And becomes part of an attention.
    TensorRT-RTX keeps a double negation, which costs one small kernel a step.

    Before (near: less than a window before the query)::

        y = Attention(q, k, v, mask);   y' = Attention(q', k', v', mask);    w = And(mask, near)

    After::

        own, own_w = Not(Not(mask)), Not(Not(mask))
        y = Attention(q, k, v, mask);   y' = Attention(q', k', v', own);     w = And(own_w, near)
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph, modified = model.graph, False
        base = [n for n in graph if n.op_type == "Attention" and not _is_channel(n)]
        for mask in dict.fromkeys(n.inputs[3] for n in base):
            assert mask is not None
            copies: dict[str, ir.Value] = {}
            for node, index in list(mask.uses()):
                kind = _other(node)
                if kind is not None and kind not in copies:
                    copies[kind] = _copy(graph, mask, f"{mask.name}.{kind}")
                if kind is not None:
                    node.replace_input_with(index, copies[kind])
            modified = modified or bool(copies)
        return ir.passes.PassResult(model, modified=modified)


def _copy(graph: ir.Graph, mask: ir.Value, name: str) -> ir.Value:
    made_by = mask.producer()  # None for a graph input
    e = Emitter(graph, made_by or graph[0], before=made_by is None)
    negated = e.op("Not", [mask], f"{name}.hidden", shape=mask.shape)
    return e.op("Not", [negated], name, shape=mask.shape)


def _other(reader: ir.Node) -> str | None:
    """What reads a mask beside the base's attention: the channel's, or the mask of a window."""
    if reader.op_type == "And":
        return str(reader.outputs[0].name)
    return "channel" if reader.op_type == "Attention" and _is_channel(reader) else None


def _is_channel(attention: ir.Node) -> bool:
    """Whether an Attention is over a channel cache that was updated in place."""
    values = attention.inputs[2]  # keys may be the base's
    update = None if values is None else values.producer()
    past = update.inputs[0] if update is not None and update.op_type == "TensorScatter" else None
    return past is not None and str(past.name).startswith(f"{CHANNEL_CACHE.past}.")
