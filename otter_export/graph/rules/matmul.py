"""MatMul with a weight: the widened projection ``y' = A x + B x'``."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from otter_export.errors import UnsupportedError
from otter_export.family import channel_width
from otter_export.graph.rule import Rule, Widening, parameter_stem
from otter_export.graph.weights import source_initializer


def _apply(node: ir.Node, state: Widening) -> Sequence[ir.Value | None]:
    """Y = MatMul(x, W^T)  =>  y' = Add(MatMul(x, A^T), MatMul(x', B^T)).

    The language model head ends the channel: the signal heads read its input. Queries and keys have
    no channel part where the attention is shared.
    """
    x, weight = node.inputs[0], node.inputs[1]
    assert x is not None
    stem = parameter_stem(weight)
    if state.is_output_head(stem):
        state.final_state = state.channel[x]
        return [None]
    site = state.site(stem)
    if source_initializer(weight) is None or site is None:
        raise UnsupportedError(
            f"node {node.name!r}: a MatMul of the widened state must have a known weight; "
            f"{stem or 'its second input'} is none of the family's projections"
        )
    if not state.has_tensor(f"{site.name}.otter.from_base"):
        return [None]
    e = state.emitter(node)
    shape = state.shape(node.outputs[0], channel_width(state.config, site.writes))
    parts = []
    for name, value in (("from_base", x), ("from_channel", state.channel[x])):
        full = f"{site.name}.otter.{name}"
        matrix = e.op("Transpose", [state.tensor(full, x)], f"{full}_t", perm=[1, 0])
        parts.append(e.op("MatMul", [value, matrix], f"{full}_matmul", shape=shape))
    return [e.op("Add", parts, f"{site.name}.otter", shape=shape)]


RULE = Rule("MatMul", _apply, "n'_in -> n'_out, from n_in and n'_in (weight only)")
