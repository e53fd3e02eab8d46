"""Signal heads in the graph: ``activation(n' W^T + b)`` as an output under the signal's name.

The heads of a ``residual`` signal read ``h + SiLU(h W^T + b)`` each instead of ``h = n'``: the
blocks of all heads are one product, and what it gives is divided among them.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from otter_export.engine_io import LOGITS
from otter_export.graph.emit import Emitter
from otter_export.graph.rule import Widening
from otter_export.signals import Signal, block_name, kind_of

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
    if signal.residual:
        z = _residual_heads(state, e, signal, weight)
    else:
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


def _residual_heads(state: Widening, e: Emitter, signal: Signal, weight: ir.Value) -> ir.Value:
    """All heads' products with what their blocks make of the final state, ``[..., n * V']``."""
    n, size, heads = state.final_state, state.config.hidden_size, range(signal.heads)
    assert n is not None
    stem, count = block_name(signal), signal.heads
    block = state.tensor(f"{stem}.weight", n, (count * size, size))
    bias = state.tensor(f"{stem}.bias", n, (count * size,))
    # Shapes are left out: how many rows of the state are kept is decided later.
    transposed = e.op("Transpose", [block], f"{stem}.weight_t", perm=[1, 0])
    z = e.op("MatMul", [n, transposed], f"{stem}.matmul")
    z = e.op("Add", [z, bias], f"{stem}.add")
    gate = e.op("Sigmoid", [z], f"{stem}.sigmoid")
    z = e.op("Mul", [z, gate], f"{stem}.silu")
    parts = e.nodes("Split", [z], [f"{stem}.{i}" for i in heads], axis=-1, num_outputs=count)
    names = [f"signals.{signal.name}.weight.{i}" for i in heads]
    weights = e.nodes("Split", [weight], names, axis=0, num_outputs=count)
    outputs = []
    for i, (part, own) in enumerate(zip(parts, weights, strict=True)):
        part.type, own.type = z.type, weight.type
        read = e.op("Add", [n, part], f"{stem}.{i}.add")
        turned = e.op("Transpose", [own], f"{names[i]}_t", perm=[1, 0])
        outputs.append(e.op("MatMul", [read, turned], f"signals.{signal.name}.{i}.matmul"))
    return e.op("Concat", outputs, f"signals.{signal.name}.concat", axis=-1)


def head_nodes(graph: ir.Graph) -> list[ir.Node]:
    """The MatMul of the logits and what of the signal heads reads the final state, as input 0.

    Behind the language model head may lie a bias, a scale or a soft cap: one value, and constants.
    """
    node = next((v.producer() for v in graph.outputs if v.name == LOGITS), None)
    while node is not None and node.op_type != "MatMul":
        computed = [v.producer() for v in node.inputs if v is not None and v.producer() is not None]
        node = computed[0] if len(computed) == 1 else None
    heads = [] if node is None else [node]
    signals = [n for n in graph if str(n.outputs[0].name).startswith("signals.")]
    made = {value for node in signals for value in node.outputs}
    reading = [n for n in signals if n.op_type in ("MatMul", "Add") and n.inputs[0] not in made]
    return heads + reading
