"""Parse ONNX files with TensorRT-RTX and print what became of each, as JSON lines.

A process of its own: the parser loads ``libtensorrt_rtx.so`` by that name, so the library path must
have it before the process starts, and a parser that cannot aborts.
"""

from __future__ import annotations

import collections
import json
import sys
from typing import Any

import tensorrt_rtx as trt


def tensors(count: int, get: Any) -> dict[str, tuple[str, list[int]]]:
    """Name to type and shape; -1 is dynamic."""
    found = [get(i) for i in range(count)]
    return {t.name: (str(t.dtype).rpartition(".")[2], list(t.shape)) for t in found}


def main() -> None:
    """``parse_networks.py [--plugin] FILE...``."""
    files = sys.argv[1:]
    logger = trt.Logger(trt.Logger.ERROR)
    if files[0] == "--plugin":
        from otter_export.plugins.tensorrt import register

        register(trt, None)
        files = files[1:]
    builder = trt.Builder(logger)
    for file in files:
        typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(typed)
        parser = trt.OnnxParser(network, logger)
        parsed = parser.parse_from_file(file)
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        layers = [network.get_layer(i) for i in range(network.num_layers)]
        kinds = collections.Counter(str(layer.type).rpartition(".")[2] for layer in layers)
        inputs = tensors(network.num_inputs, network.get_input)
        outputs = tensors(network.num_outputs, network.get_output)
        reduced = {
            str(layer.get_input(0).dtype).rpartition(".")[2]
            for layer in layers
            if layer.type == trt.LayerType.REDUCE
        }
        report = {"parsed": parsed, "errors": errors, "layers": kinds, "reduced": sorted(reduced)}
        print(json.dumps({**report, "inputs": inputs, "outputs": outputs}))


if __name__ == "__main__":
    main()
