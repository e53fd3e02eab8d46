"""Gather from an embedding: where the channel starts, ``x'0 = P x0`` or a table of its own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from otter_export.errors import UnsupportedError
from otter_export.graph.rule import Rule, Widening, parameter_stem
from otter_export.graph.start import project


def _apply(node: ir.Node, state: Widening) -> Sequence[ir.Value | None]:
    """x0 = Gather(E, ids)  =>  x'0 = MatMul(x0, P^T)   or   x'0 = Gather(E', ids)."""
    stem = parameter_stem(node.inputs[0])
    if not state.is_embedding(stem):
        raise UnsupportedError(
            f"node {node.name!r}: Gather of the widened state; only an embedding has a rule"
        )
    output = node.outputs[0]
    if state.config.embedding == "projection":
        return [project(state, stem, output)]
    table = state.tensor(f"{stem}.otter.table", output)
    shape = state.shape(output, state.config.hidden_size)
    inputs = [table, node.inputs[1]]
    return [state.emitter(node).op("Gather", inputs, f"{stem}.otter", shape=shape)]


RULE = Rule("Gather", _apply, "embedding row d -> d' (only at an embedding)")
