"""The start of the channel: ``x' = P x``, at the embeddings or at a state inside the base."""

from __future__ import annotations

import onnx_ir as ir

from otter_export.errors import UnsupportedError
from otter_export.graph.emit import Emitter
from otter_export.graph.rule import Widening, parameter_stem


def project(state: Widening, stem: str, x: ir.Value) -> ir.Value:
    """``x' = MatMul(x, P^T)``, right behind x, which every reader of x comes after."""
    producer = x.producer()
    assert producer is not None
    e = Emitter(state.model.graph, producer)
    projection = state.tensor(f"{stem}.otter.projection", x)
    transposed = e.op("Transpose", [projection], f"{stem}.otter.projection_t", perm=[1, 0])
    shape = state.shape(x, state.config.hidden_size)
    return e.op("MatMul", [x, transposed], f"{stem}.otter", shape=shape)


def start_inside(state: Widening, stem: str) -> None:
    """Start the channel at the state that enters a layer, or the final norm.

    Raises:
        UnsupportedError: The graph has no such place.
    """
    x = _entering(state.model.graph, stem)
    state.channel[x] = project(state, stem, x)


def _entering(graph: ir.Graph, stem: str) -> ir.Value:
    """The state that the first node with parameters of a module computes on.

    A layer begins with a norm or, where norms follow what they normalise (OLMo 2), with a
    projection: both read the residual stream.
    """
    for node in graph:
        stems = [parameter_stem(value) for value in node.inputs]
        states = [
            value
            for value, parameter in zip(node.inputs, stems, strict=True)
            if value is not None and value.producer() is not None and not parameter
        ]
        if states and any(f"{one}.".startswith(f"{stem}.") for one in stems):
            if len(states) == 1:
                return states[0]
            break
    raise UnsupportedError(
        f"the base graph has no single state that enters {stem}; the family table and mobius-onnx "
        "disagree about this base"
    )
