"""The channel's attention reads a mask value of its own."""

from __future__ import annotations

import onnx_ir as ir

from otter_export.engine_io import CHANNEL_CACHE
from otter_export.graph.emit import Emitter


class SeparateMasks(ir.passes.InPlacePass):
    """Give base and channel attention one mask value each.

    TensorRT-RTX 1.7 names what it derives from a mask after the mask, and so cannot build two
    attentions of different kernels that share one ("Graph contains more than one op named
    attention_mask.1_iota"). It keeps a double negation, which costs one small kernel a step.

    Before::

        y = Attention(q, k, v, mask);   y' = Attention(q', k', v', mask)

    After::

        mask' = Not(Not(mask));         y' = Attention(q', k', v', mask')
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        attentions = [n for n in graph if n.op_type == "Attention"]
        nodes = [n for n in attentions if _is_channel(n)]
        others = {n.inputs[3] for n in attentions if n not in nodes}
        shared = dict.fromkeys(n.inputs[3] for n in nodes if n.inputs[3] in others)
        for mask in shared:
            assert mask is not None
            made_by = mask.producer()  # a window's; else it is a graph input
            e = Emitter(graph, made_by or graph[0], before=made_by is None)
            stem = "otter.mask" if made_by is None else f"{mask.name}.channel"
            negated = e.op("Not", [mask], f"{stem}.hidden", shape=mask.shape)
            own = e.op("Not", [negated], stem, shape=mask.shape)
            for use in [u for u in mask.uses() if u.node in nodes]:
                use.node.replace_input_with(use.idx, own)
        return ir.passes.PassResult(model, modified=bool(shared))


def _is_channel(attention: ir.Node) -> bool:
    """Whether an Attention is over a channel cache that was updated in place."""
    keys = attention.inputs[1]
    update = None if keys is None else keys.producer()
    past = update.inputs[0] if update is not None and update.op_type == "TensorScatter" else None
    return past is not None and str(past.name).startswith(f"{CHANNEL_CACHE.past}.")
