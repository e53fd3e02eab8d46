"""Element-wise ops of one input repeat on the channel with the same attributes."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from otter_export.graph.emit import attributes_of
from otter_export.graph.rule import Rule, Widening


def _apply(node: ir.Node, state: Widening) -> Sequence[ir.Value | None]:
    """f(x) => f(x')."""
    x = node.inputs[0]
    assert x is not None
    channel, name = state.channel[x], f"{node.outputs[0].name}.otter"
    outputs = state.emitter(node).op(
        node.op_type, [channel], name, shape=channel.shape, **attributes_of(node)
    )
    return [outputs]


def _rule(op_type: str) -> Rule:
    return Rule(op_type, _apply, "n' -> n'")


SIGMOID = _rule("Sigmoid")
GELU = _rule("Gelu")
RELU = _rule("Relu")
TANH = _rule("Tanh")
SWISH = _rule("Swish")
ERF = _rule("Erf")
IDENTITY = _rule("Identity")
