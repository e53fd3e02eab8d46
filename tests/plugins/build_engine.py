"""Builds a small engine of fused projections with TensorRT-RTX; one JSON object in, one out.

A process of its own: the ONNX parser looks for the library by a name that the loader searches in
``LD_LIBRARY_PATH`` as it was when the process started, and a library that was loaded cannot be
unloaded.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.numpy_helper
import onnx.parser
import onnx_ir as ir
import tensorrt_rtx as trt

from otter_export.graph.functions import BIAS, register_functions

SHAPES = {"W": (96, 64), "A": (24, 64), "B": (24, 16), "b": (96,), "c": (24,)}
SECOND = {"W2": (64, 96), "A2": (16, 96), "B2": (16, 24)}
DTYPES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float": np.float32}
NODE = 'com.otter.OtterLinear <plugin_namespace = "com.otter", plugin_version = "1">'


def model(dtype: str, first_inputs: str) -> onnx.ModelProto:
    """Two fused projections in a row; ``first_inputs`` are those of the first after x and x'."""
    text = f"""
        <ir_version: 10, opset_import: ["" : 24, "com.otter" : 1]>
        g ({dtype}[N, S, 64] x, {dtype}[N, S, 16] x_channel)
          => ({dtype}[N, S, 64] y, {dtype}[N, S, 16] y_channel)
        {{
            h, h_channel = {NODE} (x, x_channel, {first_inputs})
            y, y_channel = {NODE} (h, h_channel, W2, A2, B2)
        }}"""
    parsed = onnx.parser.parse_model(text)
    for name, shape in {**SHAPES, **SECOND}.items():
        values = np.full(shape, 0.125, DTYPES[dtype])
        parsed.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    # As in a lowered model: the plain form is there, too, for runtimes without the plugin.
    lowered = ir.from_proto(parsed)
    register_functions(lowered)
    for node in lowered.graph:
        node.overload = BIAS if len(node.inputs) == 7 else ""
    return ir.to_proto(lowered)


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps warnings and errors."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.lines: list[str] = []

    def log(self, severity: Any, message: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR, trt.ILogger.WARNING):
            self.lines.append(message)


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Parse and build; the parsed layers, the plan's size, and what was logged."""
    log = Log()
    builder = trt.Builder(log)
    if request["library"] is not None:
        trt.get_plugin_registry().load_library(request["library"])
    else:
        from otter_export.plugins.tensorrt import register

        directory = request["cubins"]
        register(trt, None if directory is None else Path(directory))
        register(trt, None if directory is None else Path(directory))  # for another engine
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, log)
    parsed = parser.parse(model(request["dtype"], request["inputs"]).SerializeToString())
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    plan = None
    if parsed:
        config = builder.create_builder_config()
        profile = builder.create_optimization_profile()
        for name, width in (("x", 64), ("x_channel", 16)):
            profile.set_shape(name, (1, 1, width), (2, 4, width), (8, 32, width))
        config.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, config)
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return {
        "parsed": parsed,
        "layers": [str(layer.type).removeprefix("LayerType.") for layer in layers],
        "outputs": [[o.name, str(o.dtype), list(o.shape)] for o in outputs],
        "plan_bytes": plan.nbytes if plan is not None else 0,
        "log": log.lines,
    }


if __name__ == "__main__":
    print(json.dumps(build(json.loads(sys.argv[1]))))
