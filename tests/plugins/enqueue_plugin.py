"""Calls the Python plugin as TensorRT does when an engine runs; arguments: cubins, input count.

The driver that it finds is the stub of these tests. x is [2, 3, 64], x' [2, 3, 16], and so on.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tensorrt_rtx as trt

from otter_export.plugins.tensorrt import register

SHAPES = [(2, 3, 64), (2, 3, 16), (96, 64), (24, 64), (24, 16), (96,), (24,)]
OUTPUTS = [(2, 3, 96), (2, 3, 24)]


def description(shape: tuple[int, ...]) -> trt.PluginTensorDesc:
    """A dense float16 tensor."""
    tensor = trt.PluginTensorDesc()
    tensor.dims = trt.Dims(shape)
    tensor.type = trt.float16
    tensor.format = trt.TensorFormat.LINEAR
    return tensor


def main() -> None:
    """Create, attach, announce the shapes, enqueue two times."""
    cubins, count = Path(sys.argv[1]), int(sys.argv[2])
    register(trt, cubins)
    creator = trt.get_plugin_registry().get_creator("OtterLinear", "1", "com.otter")
    plugin = creator.create_plugin("node", trt.PluginFieldCollection([]), trt.TensorRTPhase.RUNTIME)
    attached = plugin.clone()
    inputs = [description(shape) for shape in SHAPES[:count]]
    outputs = [description(shape) for shape in OUTPUTS]
    attached.on_shape_change(inputs, outputs)
    addresses = [0x7F0000000000 + 0x1000 * i for i in range(count)]
    written = [0x7E0000000000, 0x7E0000001000]
    for _ in range(2):
        attached.enqueue(inputs, outputs, addresses, written, 0, 0x77)


if __name__ == "__main__":
    main()
