"""Weight-only int8 and int4 in plain ONNX ops, as TensorRT reads them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from otter_export.graph.emit import Emitter, static_shape, value_of
from otter_export.graph.weights import PartSpec, add_parts, drop_unused, multiplied_weight
from otter_export.precision import WeightFormat

_CODES = {8: ir.DataType.INT8, 4: ir.DataType.INT4}


class WeightOnly(ir.passes.InPlacePass):
    """Store base weights in 8 or 4 bits; activations, channel and signal heads keep their type.

    Before::

        y = MatMul(x, Transpose(W [out, in]))

    After (one scale a row of ``out``, or one a block along ``in``)::

        w = DequantizeLinear(codes [in, out], scales [out], axis=1)
        w = DequantizeLinear(codes [in, out], scales [in/block, out], axis=0, block_size=block)
        y = MatMul(x, w)

    A builder reads the pair as one product over codes. A width that no block divides stays as it
    is.
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
            block = stored.block_of(static_shape(weight)[1])
            if block is not None:
                _replace(graph, node, weight, stored, block)
                changed = True
        return ir.passes.PassResult(model, modified=changed)


def _replace(
    graph: ir.Graph, node: ir.Node, weight: ir.Value, stored: WeightFormat, block: int
) -> None:
    """Let ``node`` read codes; the weight goes where nothing else reads it."""
    transposed = node.inputs[1]
    rows, columns = static_shape(weight)
    layout = {"axis": 1} if stored.block is None else {"axis": 0, "block_size": block}
    dense = Emitter(graph, node, before=True).op(
        "DequantizeLinear",
        _codes(graph, weight, stored, block),
        f"{node.outputs[0].name}.weight",
        dtype=weight.dtype,
        shape=[columns, rows],
        **layout,
    )
    node.replace_input_with(1, dense)
    drop_unused(graph, transposed, weight)


def _codes(graph: ir.Graph, weight: ir.Value, stored: WeightFormat, block: int) -> list[ir.Value]:
    """Codes and scales: the inputs of DequantizeLinear that stand for a weight."""
    tensor, bits = value_of(weight), stored.bits
    rows, columns = static_shape(tensor)
    scales = (rows,) if stored.block is None else (columns // block, rows)
    parts: list[PartSpec] = [("", _CODES[bits], (columns, rows)), ("_scales", tensor.dtype, scales)]

    def make() -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        codes, found = encode(tensor.numpy(), bits, block)
        return codes, found.reshape(scales)

    return add_parts(graph, f"{weight.name}_int{bits}", parts, make)


def encode(
    weight: npt.NDArray[Any], bits: int, block: int
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Round a weight ``[out, in]`` to symmetric codes of ``bits``.

    The scale takes the largest magnitude of a block to the largest code. Smaller scales, which
    clip it for the sake of the rest, gave SmolLM2 a larger KL divergence, not a smaller one.

    Returns:
        Codes ``[in, out]`` int8 or int4, and scales ``[in / block, out]`` of the weight's type, by
        which the codes were rounded.
    """
    rows, columns = weight.shape
    largest = 2 ** (bits - 1) - 1
    blocks = np.ascontiguousarray(weight.T, np.float32).reshape(columns // block, block, rows)
    scales = (np.abs(blocks).max(1) / largest).astype(weight.dtype)
    # A block of zeros, or one whose scale the type rounds to zero, has codes of zero.
    scales = np.where(scales > 0, scales, np.ones_like(scales))
    codes = np.rint(blocks / scales.astype(np.float32)[:, None]).clip(-largest, largest)
    stored = np.int8 if bits == 8 else ml_dtypes.int4
    return codes.reshape(columns, rows).astype(stored), scales
