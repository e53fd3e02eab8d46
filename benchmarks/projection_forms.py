"""One projection alone: kernels for its base part, and ways to add the channel.

Usage: python -m benchmarks.projection_forms [--width 2048] [--channel 256] [--rows 1 8]

Each form is a graph of its own in ONNX Runtime on one thread, run in turns; the least CPU time is
printed as a ratio to the first form, the base projection alone.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Any

# ONNX Runtime looks at it once, when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnx.parser
import onnxruntime as ort

#: Inputs and outputs of a form, then its nodes; d is the base's width, c the channel's.
FORMS = {
    "base alone, MatMul [in, out]": ("W[{d},{d}]", "y = MatMul(x, W)"),
    "base alone, Gemm [out, in]": ("W[{d},{d}]", "y = Gemm<transB = 1>(x, W)"),
    "W, A, B apart": (
        "W[{d},{d}] A[{d},{c}] B[{c},{c}]",
        "y = MatMul(x, W) a = MatMul(x, A) b = MatMul(z, B) v = Add(a, b)",
    ),
    "[W;A] stacked, then B": (
        "W[{d},{dc}] B[{c},{c}]",
        "s = MatMul(x, W) y, a = Split<axis = 1>(s, sizes) b = MatMul(z, B) v = Add(a, b)",
    ),
    "dense, with the zero block": (
        "W[{dc},{dc}]",
        "xz = Concat<axis = 1>(x, z) s = MatMul(xz, W) y, v = Split<axis = 1>(s, sizes)",
    ),
}


def session(name: str, width: int, channel: int) -> Any:
    """One form as a session on one thread, its weights inside."""
    weights, nodes = FORMS[name]
    sizes = weights.format(d=width, c=channel, dc=width + channel).split()
    generator = np.random.default_rng(0)
    declared, shapes = [], {}
    for entry in sizes:
        weight, _, shape = entry.rstrip("]").partition("[")
        shapes[weight] = tuple(int(n) for n in shape.split(","))
        declared.append(f"float[{shape}] {weight}")
    outputs = f"float[T, {width}] y" + (f", float[T, {channel}] v" if "v =" in nodes else "")
    text = (
        f'<ir_version: 10, opset_import: ["" : 21]> g (float[T, {width}] x, '
        f"float[T, {channel}] z, int64[2] sizes, {', '.join(declared)}) => ({outputs}) "
        f"{{ {nodes} }}"
    )
    model = onnx.parser.parse_model(text)
    arrays: dict[str, Any] = {
        key: generator.standard_normal(shape).astype(np.float32) for key, shape in shapes.items()
    }
    arrays["sizes"] = np.array([width, channel])
    for value in [v for v in model.graph.input if v.name in arrays]:
        model.graph.input.remove(value)
    for key, array in arrays.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, key))
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model.SerializeToString(), options)


def main() -> None:
    """Print one Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--channel", type=int, default=256)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--turns", type=int, default=20)
    arguments = parser.parse_args()
    sessions = {name: session(name, arguments.width, arguments.channel) for name in FORMS}
    columns = []
    for rows in arguments.rows:
        feed = {
            "x": np.ones((rows, arguments.width), np.float32),
            "z": np.ones((rows, arguments.channel), np.float32),
        }
        best = dict.fromkeys(FORMS, float("inf"))
        for _ in range(arguments.turns):
            for name, one in sessions.items():
                used = {v.name: feed[v.name] for v in one.get_inputs()}
                for _ in range(3):
                    started = time.process_time()
                    one.run(None, used)
                    best[name] = min(best[name], time.process_time() - started)
        columns.append(best)
    print("| form | " + " | ".join(f"{rows} rows" for rows in arguments.rows) + " |")
    print("|---" * (len(columns) + 1) + "|")
    first = next(iter(FORMS))
    for name in FORMS:
        print(f"| {name} | " + " | ".join(f"{c[name] / c[first]:.2f}" for c in columns) + " |")


if __name__ == "__main__":
    main()
