"""Gather from an embedding: where the channel starts, ``x'0 = P x0`` or a table of its own."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from otter_export.errors import UnsupportedError
from otter_export.graph.rule import Rule, Widening, parameter_stem


def _apply(node: ir.Node, state: Widening) -> Sequence[ir.Value | None]:
    """x0 = Gather(E, ids)  =>  x'0 = MatMul(x0, P^T)   or   x'0 = Gather(E', ids)."""
    stem = parameter_stem(node.inputs[0])
    if not state.is_embedding(stem):
        raise UnsupportedError(
            f"node {node.name!r}: Gather of the widened state; only an embedding has a rule"
        )
    output = node.outputs[0]
    e = state.emitter(node)
    shape = state.shape(output, state.config.hidden_size)
    if state.config.embedding == "table":
        table = state.tensor(f"{stem}.otter.table", output)
        return [e.op("Gather", [table, node.inputs[1]], f"{stem}.otter", shape=shape)]
    projection = state.tensor(f"{stem}.otter.projection", output)
    transposed = e.op("Transpose", [projection], f"{stem}.otter.projection_t", perm=[1, 0])
    return [e.op("MatMul", [output, transposed], f"{stem}.otter", shape=shape)]


RULE = Rule("Gather", _apply, "embedding row d -> d' (only at an embedding)")
