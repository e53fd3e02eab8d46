"""Runs the kernel in Triton's interpreter, in a process of its own; cases come as lines of JSON.

Interpreting is decided when a kernel's module is imported, so it would spoil every other test of
the process that set it.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from torch import Tensor
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

from otter_export.plugins.otter_linear import launch
from otter_export.plugins.tiles import Tile

#: Relative error of one rounding: 2^-p for a significand of p bits.
ROUNDING = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
#: Half the distance of the subnormal numbers, where the relative bound does not hold.
SMALLEST = {"float16": 2.0**-25, "bfloat16": 2.0**-134}
#: float32's, for each of the additions of a sum.
SUM_ROUNDING = 2.0**-24
#: Values around tensors, and what is in them around outputs.
MARGIN = 7
FILL = 7.0


def _understand_bfloat16() -> None:
    """Let the interpreter compute in bfloat16 as a GPU does.

    It keeps such values as 16-bit integers: ``tl.dot`` would multiply these integers (a known
    limitation: triton-lang/triton, issue 11584), and a cast from float32 would cut bits off, where
    the compiled kernel rounds to nearest even (test_cubins.py looks at that instruction). bfloat16
    is the upper half of float32.
    """
    plain_dot, plain_cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def widened(handle: Any) -> Any:
        if handle.data.dtype != np.uint16:
            return handle
        bits = handle.data.astype(np.uint32) << 16
        return TensorHandle(bits.view(np.float32), tl.float32)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        return plain_dot(self, widened(a), widened(b), d, *rest)

    def cast(self: Any, source: Any, dtype: Any) -> Any:
        if source.dtype.scalar != tl.float32 or dtype.scalar != tl.bfloat16:
            return plain_cast(self, source, dtype)
        bits = source.data.astype(np.float32).view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return TensorHandle(rounded.astype(np.uint16), tl.bfloat16)

    InterpreterBuilder.create_dot = create_dot
    # The builder's other methods for casts call this one.
    InterpreterBuilder.cast_impl = cast


class _Memory:
    """What the kernel may read and write: tensors, and nothing between them.

    A GPU would fault on some such accesses, and on others answer with another tensor's values.
    """

    def __init__(self) -> None:
        self._readable: list[Tensor] = []
        self._writable: list[Tensor] = []
        plain_load, plain_store = (
            InterpreterBuilder.create_masked_load,
            InterpreterBuilder.create_masked_store,
        )

        def load(builder: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
            self._check(pointers.data[mask.data], self._readable)
            return plain_load(builder, pointers, mask, *rest)

        def store(builder: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
            self._check(pointers.data[mask.data], self._writable)
            return plain_store(builder, pointers, value, mask, *rest)

        InterpreterBuilder.create_masked_load = load
        InterpreterBuilder.create_masked_store = store

    def allow(self, *, reads: list[Tensor], writes: list[Tensor]) -> None:
        """From now on, these tensors."""
        self._readable, self._writable = reads, writes

    def _check(self, addresses: Any, tensors: list[Tensor]) -> None:
        inside = np.zeros(addresses.shape, bool)
        for tensor in tensors:
            rows, width = tensor.shape if tensor.ndim == 2 else (1, *tensor.shape)
            pitch = tensor.element_size() * (tensor.stride(0) if tensor.ndim == 2 else width)
            offset = addresses.astype(np.int64) - tensor.data_ptr()
            in_row = offset % pitch < tensor.element_size() * width
            inside |= (offset >= 0) & (offset < rows * pitch) & in_row
        if not inside.all():
            raise IndexError(f"{(~inside).sum()} addresses lie outside the tensors")


def _surrounded(values: Tensor, fill: float, gap: int) -> tuple[Tensor, Tensor]:
    """A copy inside a larger buffer of ``fill``, its rows ``gap`` values apart; and that buffer."""
    rows, width = values.shape
    buffer = torch.full((MARGIN + rows * (width + gap) + MARGIN,), fill, dtype=values.dtype)
    inner = buffer[MARGIN:-MARGIN].view(rows, width + gap)[:, :width]
    inner.copy_(values)
    return inner, buffer


def run(case: dict[str, Any], memory: _Memory) -> dict[str, Any]:
    """Launch one case; the errors in units of what rounding explains, and what lies around."""
    rows, base_in, channel_in, base_out, channel_out = case["shape"]
    dtype = getattr(torch, case["dtype"])
    generator = torch.Generator().manual_seed(case["seed"])

    def draw(height: int, width: int, gap: int = 0) -> Tensor:
        # NaN around every input: a value that is read and should not be spoils the sum.
        values = torch.randn(height, width, generator=generator).to(dtype)
        return _surrounded(values, float("nan"), gap)[0]

    gap = case["gap"]
    x, x_channel = draw(rows, base_in, gap), draw(rows, channel_in, gap)
    weights = (draw(base_out, base_in), draw(channel_out, base_in), draw(channel_out, channel_in))
    biases = (draw(1, base_out)[0], draw(1, channel_out)[0]) if case["bias"] else None
    y, y_buffer = _surrounded(torch.zeros(rows, base_out, dtype=dtype), FILL, gap)
    y_channel, y_channel_buffer = _surrounded(
        torch.zeros(rows, channel_out, dtype=dtype), FILL, gap
    )
    memory.allow(reads=[x, x_channel, *weights, *(biases or ())], writes=[y, y_channel])
    launch(Tile(**case["tile"]), x, x_channel, weights, biases, y, y_channel)

    bias, bias_channel = biases or (torch.zeros(base_out), torch.zeros(channel_out))
    weight, from_base, from_channel = weights
    joined, inserted = torch.cat((x, x_channel), 1), torch.cat((from_base, from_channel), 1)
    result: dict[str, Any] = {
        "y": _error(y, x, weight, bias, case["dtype"]),
        "y_channel": _error(y_channel, joined, inserted, bias_channel, case["dtype"]),
    }
    y.fill_(FILL)
    y_channel.fill_(FILL)
    intact = bool((y_buffer == FILL).all() and (y_channel_buffer == FILL).all())
    return result | {"around_is_intact": intact}


def _error(y: Tensor, x: Tensor, weight: Tensor, bias: Tensor, dtype: str) -> float:
    """Largest deviation from float64, divided by the bound for a float32 sum rounded once."""
    x, weight, bias = x.double(), weight.double(), bias.double()
    expected = x @ weight.T + bias
    magnitude = x.abs() @ weight.T.abs() + bias.abs()
    in_sum = (x.shape[1] + 1) * SUM_ROUNDING * magnitude
    bound = in_sum + ROUNDING[dtype] * (expected.abs() + in_sum) + SMALLEST[dtype]
    worst = float(((y.double() - expected).abs() / bound).max())
    return worst if worst == worst else 1e30  # NaN is not JSON


def main() -> None:
    """Answer each line of standard input with one line."""
    _understand_bfloat16()
    memory = _Memory()
    for line in sys.stdin:
        print(json.dumps(run(json.loads(line), memory)), flush=True)


if __name__ == "__main__":
    main()
