"""Mul: gate times up repeats on the channel; a scalar or a factor scales both streams."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from otter_export.errors import UnsupportedError
from otter_export.graph.rule import Rule, Widening


def _apply(node: ir.Node, state: Widening) -> Sequence[ir.Value | None]:
    """Mul(a, b) => Mul(a', b');   Mul(a, f) => Mul(a', f), f a scalar or ``[B, S, 1]``."""
    operands = []
    for value in node.inputs:
        assert value is not None
        if value in state.channel:
            operands.append(state.channel[value])
        elif value.const_value is not None and value.const_value.size == 1:
            operands.append(value)
        elif value.shape is not None and len(value.shape) == 3 and value.shape[2] == 1:
            operands.append(value)  # one factor for each position
        else:
            raise UnsupportedError(
                f"node {node.name!r}: Mul of the widened state and {value.name!r}, which has no "
                "channel part and is no scalar"
            )
    name = f"{node.outputs[0].name}.otter"
    shape = next(state.channel[v] for v in node.inputs if v in state.channel).shape
    return [state.emitter(node).op("Mul", operands, name, shape=shape)]


RULE = Rule("Mul", _apply, "n' * n', or n' * factor")
