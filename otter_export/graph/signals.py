"""Signal heads in the graph: ``activation(n' W^T + b)`` as an output under the signal's name."""

from __future__ import annotations

import math

import onnx_ir as ir

from otter_export.engine_io import LOGITS
from otter_export.graph.emit import Emitter
from otter_export.graph.rule import Widening
from otter_export.signals import Signal, kind_of

_ACTIVATIONS = {"tanh": "Tanh", "sigmoid": "Sigmoid"}


def add_signal(state: Widening, signal: Signal) -> None:
    """Append one head and its graph output: float32 ``[batch, step, *output_dims]``."""
    graph, kind = state.model.graph, kind_of(signal)
    n = state.final_state
    assert n is not None
    logits = next(v for v in graph.outputs if v.name == LOGITS).producer()
    assert logits is not None
    e = Emitter(graph, logits)
    stem = f"signals.{signal.name}"
    dims = kind.output_dims(signal, state.checkpoint.base.dimensions.vocab_size)
    rows = math.prod(dims)
    weight, bias = (
        state.tensor(f"{stem}.{part}", n, (rows, *rest), kind.engine_head)
        for part, rest in (("weight", [state.config.hidden_size]), ("bias", []))
    )
    transposed = e.op("Transpose", [weight], f"{stem}.weight_t", perm=[1, 0])
    z = e.op("MatMul", [n, transposed], f"{stem}.matmul")
    z = e.op("Add", [z, bias], f"{stem}.add")
    if z.dtype != ir.DataType.FLOAT:
        z = e.op("Cast", [z], f"{stem}.cast", dtype=ir.DataType.FLOAT, to=ir.DataType.FLOAT)
    if signal.activation in _ACTIVATIONS:
        z = e.op(_ACTIVATIONS[signal.activation], [z], f"{stem}.{signal.activation}")
    if not dims:
        axes = e.constant([-1], "otter.axis_last")
        z = e.op("Squeeze", [z, axes], f"{stem}.squeeze")
    elif len(dims) > 1:
        shape = e.constant([0, 0, *dims], f"{stem}.shape")
        z = e.op("Reshape", [z, shape], f"{stem}.heads")
    z.name = signal.name
    z.shape = ir.Shape(["batch", "step", *dims])
    graph.outputs.append(z)


def head_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The MatMul of the logits and those of the signal heads: what reads the final state.

    Behind the language model head may lie a bias, a scale or a soft cap: one value, and constants.
    """
    node = next((v.producer() for v in graph.outputs if v.name == LOGITS), None)
    while node is not None and node.op_type != "MatMul":
        computed = [v.producer() for v in node.inputs if v is not None and v.producer() is not None]
        node = computed[0] if len(computed) == 1 else None
    heads = [] if node is None else [node]
    signals = [n for n in graph if str(n.outputs[0].name).startswith("signals.")]
    return heads + [n for n in signals if n.op_type == "MatMul"]
