"""Weight-only int8 and int4 in plain ONNX ops, as TensorRT reads them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from otter_export.graph.emit import Emitter, add_initializer, static_shape, value_of
from otter_export.graph.rule import source_initializer

_CODES = {8: ir.DataType.INT8, 4: ir.DataType.INT4}


@dataclasses.dataclass(frozen=True)
class CodeFormat:
    """How the codes of a weight ``[out, in]`` are scaled; zero is always code 0.

    TensorRT has no zero points for weights, and wants positive scales.

    Args:
        bits: 8 or 4.
        block: Weights along ``in`` that share a scale; None gives each row of ``out`` one. A width
            that it does not divide takes the largest halved block that does, at least 16.
    """

    bits: int
    block: int | None

    def block_of(self, columns: int) -> int | None:
        """The block for a width of ``columns``; None if no block of at least 16 divides it."""
        block = columns if self.block is None else self.block
        while columns % block and block > _SMALLEST_BLOCK:
            block //= 2
        return None if columns % block else block


#: TensorRT has int4 kernels for blocks of 16 to 128.
_SMALLEST_BLOCK = 16


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

    def __init__(self, choose: Callable[[str], CodeFormat | None]) -> None:
        """``choose(name)``: the format of an initializer; None for those that are left alone."""
        super().__init__()
        self._choose = choose

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass in place."""
        graph = model.graph
        changed = False
        for node in list(graph):
            if node.op_type != "MatMul":
                continue
            weight = source_initializer(node.inputs[1])
            if weight is None or weight is node.inputs[1]:
                continue
            stored = self._choose(str(weight.name))
            columns = static_shape(weight)[1]
            block = None if stored is None else stored.block_of(columns)
            if stored is None or block is None:
                continue
            _replace(graph, node, weight, stored, block)
            changed = True
        return ir.passes.PassResult(model, modified=changed)


def _replace(
    graph: ir.Graph, node: ir.Node, weight: ir.Value, stored: CodeFormat, block: int
) -> None:
    """Let ``node`` read codes; the weight goes where nothing else reads it."""
    transposed = node.inputs[1]
    assert transposed is not None
    rows, columns = static_shape(weight)
    parts = []
    for tensor in _tensors(str(weight.name), value_of(weight), stored, block):
        existing = graph.initializers.get(str(tensor.name))
        parts.append(existing or add_initializer(graph, str(tensor.name), tensor))
    layout = {"axis": 1} if stored.block is None else {"axis": 0, "block_size": block}
    e = Emitter(graph, node, before=True)
    name = f"{node.outputs[0].name}.weight"
    dense = e.op(
        "DequantizeLinear", parts, name, dtype=weight.dtype, shape=[columns, rows], **layout
    )
    node.replace_input_with(1, dense)
    transpose = transposed.producer()
    if transpose is not None and not transposed.uses():
        graph.remove(transpose, safe=True)
    if not weight.uses():
        del graph.initializers[str(weight.name)]


def _tensors(
    name: str, weight: ir.TensorProtocol, stored: CodeFormat, block: int
) -> list[ir.LazyTensor]:
    """Lazy codes and scales, computed together once and dropped as they are read."""
    rows, columns = static_shape(weight)
    scales = (rows,) if stored.block is None else (columns // block, rows)
    parts = [("", _CODES[stored.bits], (columns, rows)), ("_scales", weight.dtype, scales)]
    waiting: dict[int, npt.NDArray[Any]] = {}

    def part(index: int) -> npt.NDArray[Any]:
        if index not in waiting:
            codes, found = encode(weight.numpy(), stored.bits, block)
            waiting.update({0: codes, 1: found.reshape(scales)})
        return waiting.pop(index)

    def lazy(index: int, suffix: str, dtype: ir.DataType, shape: tuple[int, ...]) -> ir.LazyTensor:
        full = f"{name}_int{stored.bits}{suffix}"
        return ir.LazyTensor(
            lambda: ir.tensor(part(index), name=full), dtype, ir.Shape(shape), name=full
        )

    return [lazy(index, *described) for index, described in enumerate(parts)]


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
