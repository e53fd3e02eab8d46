"""Comparison of the network that TensorRT parsed with the graph that was written.

TensorRT says nothing when it takes a graph differently: a plugin that it does not find is replaced
by the function of the same name, an attention that it does not know becomes products and a softmax.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator

import onnx_ir as ir

from otter_export.converters.onnx import tensor_specs
from otter_export.converters.tensorrt.job import Built
from otter_export.errors import EngineError

#: Op type to the layer that it must become, one each.
_EXACT = {"TensorScatter": "KV_CACHE_UPDATE", "Attention": "ATTENTION_INPUT"}
_PLUGIN_LAYER = "PLUGIN_V3"


def check_built(model: ir.Model, built: Built, plugin_layers: int) -> None:
    """Compare the parsed network with the graph.

    Raises:
        EngineError: They differ; nothing of the engine can be relied upon.
    """
    wrong = [*_layer_problems(model, built, plugin_layers), *_tensor_problems(model, built)]
    if built.plan_bytes <= 0:
        wrong.append("the plan is empty")
    if wrong:
        raise EngineError(
            f"TensorRT {built.version} built another engine than was asked for: "
            f"{'; '.join(wrong[:5])}"
        )


def _layer_problems(model: ir.Model, built: Built, plugin_layers: int) -> Iterator[str]:
    nodes = collections.Counter(node.op_type for node in model.graph)
    wanted = {layer: nodes[op] for op, layer in _EXACT.items()} | {_PLUGIN_LAYER: plugin_layers}
    for layer, count in wanted.items():
        found = built.layers.get(layer, 0)
        if found != count:
            yield f"{found} layers {layer}, expected {count}"


def _tensor_problems(model: ir.Model, built: Built) -> Iterator[str]:
    """Names, dtypes and shapes of inputs and outputs."""
    sides = (
        ("input", model.graph.inputs, built.inputs),
        ("output", model.graph.outputs, built.outputs),
    )
    for side, values, found in sides:
        specs = tensor_specs(values)
        wanted = {
            s.name: (s.dtype, tuple(n if isinstance(n, int) else -1 for n in s.shape))
            for s in specs
        }
        actual = {name: (dtype, shape) for name, dtype, shape in found}
        for name in {**wanted, **actual}:  # in the graph's order
            if wanted.get(name) != actual.get(name):
                yield f"{side} {name} is {actual.get(name)}, expected {wanted.get(name)}"
