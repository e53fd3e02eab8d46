"""The channel's attention reads a mask value of its own."""

from __future__ import annotations

import onnx_ir as ir

from otter_export.engine_io import ATTENTION_MASK, CHANNEL_CACHE
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
        mask = next((v for v in graph.inputs if v.name == ATTENTION_MASK), None)
        uses = [] if mask is None else [u for u in mask.uses() if _is_channel(u.node)]
        if mask is None or not uses:
            return ir.passes.PassResult(model, modified=False)
        e = Emitter(graph, graph[0], before=True)
        negated = e.op("Not", [mask], "otter.mask.hidden", shape=mask.shape)
        own = e.op("Not", [negated], "otter.mask", shape=mask.shape)
        for use in uses:
            use.node.replace_input_with(use.idx, own)
        return ir.passes.PassResult(model, modified=True)


def _is_channel(node: ir.Node) -> bool:
    """An Attention over a channel cache that was updated in place."""
    if node.op_type != "Attention" or node.inputs[1] is None:
        return False
    update = node.inputs[1].producer()
    past = update.inputs[0] if update is not None and update.op_type == "TensorScatter" else None
    return past is not None and str(past.name).startswith(f"{CHANNEL_CACHE.past}.")
