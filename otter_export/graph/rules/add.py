"""Add: a residual adds both streams; a bias has a channel part ``b'``."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from otter_export.errors import UnsupportedError
from otter_export.graph.rule import Rule, Widening, parameter_stem


def _apply(node: ir.Node, state: Widening) -> Sequence[ir.Value | None]:
    """Add(a, b) => Add(a', b');   Add(y, bias) => Add(y', b')."""
    operands = []
    for value in node.inputs:
        assert value is not None
        if value in state.channel:
            operands.append(state.channel[value])
            continue
        site = state.site(parameter_stem(value))
        if site is None or not value.is_initializer():
            raise UnsupportedError(
                f"node {node.name!r}: Add of the widened state and {value.name!r}, which has no "
                "channel part and is no projection's bias"
            )
        operands.append(state.tensor(f"{site.name}.otter.bias", node.outputs[0]))
    name = f"{node.outputs[0].name}.otter"
    return [state.emitter(node).op("Add", operands, name, shape=operands[0].shape)]


RULE = Rule("Add", _apply, "n' + n' (residual) or n' + b'")
