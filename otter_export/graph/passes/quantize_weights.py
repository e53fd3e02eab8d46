"""Weight-only int8 and int4 of products with the base's states."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from otter_export.graph.emit import Emitter, static_shape, value_of
from otter_export.graph.weights import PartSpec, add_parts, drop_unused, multiplied_weight
from otter_export.precision import WeightFormat

_ACCURACY_LEVEL = 4  # int8 activations inside the kernel; without it int4 is four times as slow
#: Values that are quantised at a time: 64 MiB in float32.
_VALUES = 1 << 24

Packed = tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32], npt.NDArray[np.uint8] | None]


class QuantizeWeights(ir.passes.InPlacePass):
    """Store weights that multiply base states in 8 or 4 bits; the others keep their precision.

    Before::

        y = MatMul(x, Transpose(W [out, in]))

    After (blocks along ``in``; zero points, two to a byte, unless symmetric)::

        y = com.microsoft.MatMulNBits(x, W_q [out, blocks, bytes], scales [out, blocks],
                                      zero_points [out, ceil(blocks / 2)])
    """

    def __init__(self, choose: Callable[[str], WeightFormat | None]) -> None:
        """``choose(name)``: the format of an initializer; None for those that are left alone."""
        super().__init__()
        self._choose = choose

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        changed = False
        for node in list(graph):
            weight = multiplied_weight(node)
            stored = None if weight is None else self._choose(str(weight.name))
            if weight is None or stored is None:
                continue
            _replace(graph, node, weight, stored)
            changed = True
        graph.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified=changed)


def _replace(graph: ir.Graph, node: ir.Node, weight: ir.Value, stored: WeightFormat) -> None:
    """Let a product over codes take the node's place; the weight goes where nothing reads it."""
    rows, columns = static_shape(weight)
    output, transposed = node.outputs[0], node.inputs[1]
    name, output.name = str(output.name), f"{output.name}.float"
    y = Emitter(graph, node, before=True).op(
        "MatMulNBits",
        [node.inputs[0], *_codes(graph, weight, stored)],
        name,
        domain="com.microsoft",
        shape=output.shape,
        K=columns,
        N=rows,
        bits=stored.bits,
        block_size=stored.block,
        accuracy_level=_ACCURACY_LEVEL,
    )
    ir.convenience.replace_all_uses_with(output, y, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    drop_unused(graph, transposed, weight)


def _codes(graph: ir.Graph, weight: ir.Value, stored: WeightFormat) -> list[ir.Value]:
    """The inputs of MatMulNBits that stand for a weight."""
    tensor, bits = value_of(weight), stored.bits
    rows, columns = static_shape(tensor)
    block = stored.block or columns
    blocks = -(-columns // block)
    parts: list[PartSpec] = [
        ("", ir.DataType.UINT8, (rows, blocks, block * bits // 8)),
        ("_scales", ir.DataType.FLOAT, (rows, blocks)),
    ]
    if not stored.symmetric:
        parts.append(("_zero_points", ir.DataType.UINT8, (rows, -(-blocks * bits // 8))))
    stem = f"{weight.name}_int{bits}"
    return add_parts(graph, stem, parts, lambda: quantize(tensor.numpy(), stored))


def quantize(weight: npt.NDArray[np.float32], stored: WeightFormat) -> Packed:
    """Quantise ``[out, in]`` by ONNX Runtime's own kernels.

    Returns:
        Packed weights ``[out, blocks, bytes]``, scales ``[out, blocks]`` and, unless symmetric,
        zero points ``[out, ceil(blocks * bits / 8)]``, as MatMulNBits (com.microsoft, version 1)
        reads them: of two 4-bit values in a byte, the low half comes first.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    config = DefaultWeightOnlyQuantConfig(
        block_size=stored.block or weight.shape[1],
        is_symmetric=stored.symmetric,
        accuracy_level=_ACCURACY_LEVEL,
        bits=stored.bits,
    )
    quantizer, rows = DefaultWeightOnlyQuantizer(config), max(1, _VALUES // weight.shape[1])
    # Blocks lie within a row, so rows can be quantised some at a time: an embedding is too large
    # to be held three times over.
    parts = [
        quantizer.qbits_block_quant(np.ascontiguousarray(weight[i : i + rows].T, np.float32))
        for i in range(0, len(weight), rows)
    ]
    packed, scales, zeros = map(np.concatenate, zip(*parts, strict=True))
    return packed, scales, None if stored.symmetric else zeros
