"""Forms of the graph that were measured and not taken; docs/performance.md says why."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from otter_export.graph.attention import replace_mask
from otter_export.graph.emit import Emitter, add_initializer, lazy_tensor, static_shape, value_of


class JoinedBase(ir.passes.InPlacePass):
    """Join the base's q, k, v (and gate, up) in one product.

    Before::

        y_i = MatMul(x, W_i^T)

    After::

        y = MatMul(x, [W_0; W_1; ...]^T);   y_i = Split(y)
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        groups: dict[ir.Value, list[ir.Node]] = defaultdict(list)
        for node in model.graph:
            weight = _base_weight(node)
            if weight is not None and node.inputs[0] is not None:
                groups[node.inputs[0]].append(node)
        for x, nodes in groups.items():
            if len(nodes) > 1:
                _join(model.graph, x, nodes)
        return ir.passes.PassResult(model, modified=True)


def _base_weight(node: ir.Node) -> ir.Value | None:
    transpose = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] else None
    if transpose is None or transpose.op_type != "Transpose":
        return None
    weight = transpose.inputs[0]
    if weight is None or not weight.is_initializer():
        return None
    name = str(weight.name)
    return None if ".otter." in name or name.startswith("signals.") else weight


def _join(graph: ir.Graph, x: ir.Value, nodes: list[ir.Node]) -> None:
    weights = [w for node in nodes if (w := _base_weight(node)) is not None]
    tensors = [value_of(weight) for weight in weights]
    widths = [static_shape(weight)[0] for weight in weights]
    name = "+".join(str(weight.name) for weight in weights)

    def make() -> npt.NDArray[Any]:
        return np.concatenate([tensor.numpy() for tensor in tensors])

    shape = (sum(widths), static_shape(weights[0])[1])
    joined = add_initializer(graph, name, lazy_tensor(name, tensors[0].dtype, shape, make))
    e = Emitter(graph, nodes[0], before=True)
    transposed = e.op("Transpose", [joined], f"{name}_t", perm=[1, 0])
    leading = list(nodes[0].outputs[0].shape or ())[:-1]
    y = e.op("MatMul", [x, transposed], f"{name}_matmul", shape=[*leading, sum(widths)])
    sizes = e.constant(widths, "joined." + "_".join(map(str, widths)))
    parts = e.nodes("Split", [y, sizes], [f"{n.outputs[0].name}.part" for n in nodes], axis=-1)
    for node, part in zip(nodes, parts, strict=True):
        part.type, part.shape = node.outputs[0].type, node.outputs[0].shape
        ir.convenience.replace_all_uses_with(node.outputs[0], part)
        transpose = node.inputs[1].producer() if node.inputs[1] else None
        graph.remove(node, safe=True)
        if transpose is not None:
            graph.remove(transpose, safe=True)
    for weight in weights:
        graph.initializers.pop(str(weight.name))


class AttentionOp(ir.passes.InPlacePass):
    """Keep ONNX's Attention, which copies the prefix into ``present``; the rows are cut off it.

    Before::

        y, present_k, present_v = Attention(q, k, v, mask, past_k, past_v)

    After::

        y, present_k, present_v = Attention(q, k, v, Unsqueeze(mask), past_k, past_v)
        outputs: y, Slice(present_k, -step), Slice(present_v, -step)
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        mask = replace_mask(graph, ["batch", "step", "past + step"])
        e = Emitter(graph, graph[0], before=True)
        ids = next(v for v in graph.inputs if v.name == "input_ids")
        axis = e.constant([1], "attention.axis")
        wide = e.op("Unsqueeze", [mask, axis], "attention.mask", dtype=ir.DataType.BOOL)
        step = e.op("Shape", [ids], "attention.step", start=1, end=2)
        start = e.op("Neg", [step], "attention.start")
        end = e.constant([np.iinfo(np.int64).max], "attention.end")
        rows = e.constant([2], "attention.rows")
        for node in [n for n in graph if n.op_type == "Attention"]:
            node.replace_input_with(3, wide)
            node.attributes.pop("is_causal", None)  # the mask says all
            after = Emitter(graph, node)
            for old in node.outputs[1:3]:
                index = list(graph.outputs).index(old)
                name, old.name = str(old.name), f"{old.name}.whole"
                graph.outputs[index] = after.op(
                    "Slice", [old, start, end, rows], name, shape=old.shape
                )
        return ir.passes.PassResult(model, modified=True)
