"""`widen`: add the channel to a base graph, one rule per op.

The graph is walked once, in order, with a map *base value -> channel value*, as forward-mode
differentiation carries tangents. Base nodes are not touched, so base logits are unchanged by
construction. An op without a rule that the channel reaches is an error.
"""

from __future__ import annotations

import onnx_ir as ir

from otter_export.checkpoint import Checkpoint
from otter_export.errors import UnsupportedError
from otter_export.graph.functions import register_functions
from otter_export.graph.rule import Widening, parameter_stem
from otter_export.graph.rules import RULES
from otter_export.graph.signals import add_signal
from otter_export.graph.start import start_inside


def widen(model: ir.Model, checkpoint: Checkpoint) -> ir.Model:
    """Add the channel and the signal outputs to a hub graph, in place.

    Args:
        model: From `otter_export.graph.base.base_graph`.
        checkpoint: Where the inserted tensors lie; they are read when the model is written.

    Raises:
        UnsupportedError: The channel reaches an op that has no rule, or the graph has no place for
            one of the inserted tensors.
    """
    register_functions(model)
    state, nodes = Widening(model, checkpoint), list(model.graph)
    if checkpoint.config.first_layer:
        start_inside(state, *state.starts)
    for node in nodes:
        key = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        starts = node.op_type == "Gather" and state.is_embedding(parameter_stem(node.inputs[0]))
        carried = any(v in state.channel for v in node.inputs if v is not None)
        if not (starts or carried):
            continue
        if key not in RULES:
            raise UnsupportedError(
                f"node {node.name!r}: op {key} carries the channel, but there is no widening rule "
                f"for it; rules exist for: {', '.join(RULES)}"
            )
        outputs = RULES.load(key).apply(node, state)
        for output, channel in zip(node.outputs, outputs, strict=False):
            if channel is not None:
                state.channel[output] = channel
    if state.final_state is None:
        raise UnsupportedError(
            "the walk met no language model head: the heads have nothing to read"
        )
    for signal in checkpoint.config.signals:
        add_signal(state, signal)
    unused = state.unused_tensors()
    if unused:
        raise UnsupportedError(
            f"the base graph has no place for {len(unused)} of the inserted tensors "
            f"({', '.join(unused[:3])}{', ...' if unused[3:] else ''}); the family table and "
            "mobius-onnx disagree about this base"
        )
    return model
