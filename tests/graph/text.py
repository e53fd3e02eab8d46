"""Tiny graphs as text, run before and after a change."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx.parser
import onnx_ir as ir
import onnxruntime as ort

from otter_export.graph.functions import register_functions

Arrays = dict[str, np.ndarray[Any, Any]]


def parse(graph: str, *, functions: bool = False, **weights: np.ndarray[Any, Any]) -> ir.Model:
    """A model from the text of its graph (opset 24), with weights given as initializers.

    Args:
        graph: As in ``g (float[B, 4] x) => (float[B, 4] y) { y = Relu (x) }``; every weight is also
            named among the inputs, and ``__`` in any name stands for a dot.
        functions: Also register the functions of com.otter, which the graph then may call.
        weights: Values of inputs that become initializers.
    """
    text = (
        '<ir_version: 10, opset_import: ["" : 24, "com.microsoft" : 1, "com.otter" : 1]>\n' + graph
    )
    model = ir.serde.deserialize_model(onnx.parser.parse_model(text))
    _restore_dots(model.graph)
    values = {v.name: v for v in model.graph.inputs}
    for name, array in weights.items():
        value = values[_dotted(name)]
        model.graph.inputs.remove(value)
        value.const_value = ir.tensor(array, name=value.name)
        model.graph.register_initializer(value)
    if functions:
        register_functions(model)
    return model


def run(model: ir.Model, **inputs: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Outputs of the model in ONNX Runtime, without graph optimisations of its own."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    proto = ir.serde.serialize_model(model)
    session = ort.InferenceSession(proto.SerializeToString(), options)
    names = {v.name for v in session.get_inputs()}
    outputs: list[np.ndarray[Any, Any]] = session.run(
        None, {_dotted(k): v for k, v in inputs.items() if _dotted(k) in names}
    )
    return outputs


def ops(model: ir.Model) -> list[str]:
    """Op types in order."""
    return [node.op_type for node in model.graph]


def randn(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    """Standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _dotted(name: str) -> str:
    return name.replace("__", ".")


def _restore_dots(graph: ir.Graph) -> None:
    """The text format has no dots in names; ``__`` stands for one."""
    values = list(graph.inputs) + [v for node in graph for v in node.outputs]
    for value in values:
        value.name = _dotted(str(value.name))
