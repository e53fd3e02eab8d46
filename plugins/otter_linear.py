"""The fused projection in OpenAI Triton: ``y = W x + b`` and ``y' = A x + B x' + b'``, one launch.

The launch has one program for each tile of the channel's outputs and for each tile of the base's:

    program   0 .. c-1      y'  reads A and x, then B and x'   (longer, so they start first)
    program   c .. c+n-1    y   reads W and x

Every weight is read once per tile of rows, each program reads its x once, and there is no zero
block: the dense form [[W, 0], [A, B]] would read n_out x n'_in zeros. Sums are float32 and are
rounded once, to the inputs' type.

With 1 to 32 rows (a decode step) the time is that of reading the weights. So weights stream
(``evict_first``, asynchronous copies of 16 bytes, several tiles ahead) while x, which all
programs share, stays in the L2 cache (``evict_last``). A sum is never split over programs: that
would need a second launch or atomics, and a result that depends on their order.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import triton
import triton.language as tl

from otter_export.plugins.tiles import Tile, Widths, grid

if TYPE_CHECKING:
    from torch import Tensor


@triton.jit
def _add_product(total, x, weight, row_inside, out_inside, width, INS: tl.constexpr):
    """``total + x W^T`` over ``width`` inputs, ``INS`` at a time.

    ``x`` [ROWS] and ``weight`` [OUTS] point to the first value of each row; rows that are not
    inside, and inputs beyond ``width``, count as zero and are not read.
    """
    columns = tl.arange(0, INS)
    for start in range(0, width, INS):
        column = start + columns
        inside = column < width
        x_tile = tl.load(
            x[:, None] + column[None, :],
            mask=row_inside[:, None] & inside[None, :],
            other=0.0,
            eviction_policy="evict_last",
        )
        weight_tile = tl.load(
            weight[:, None] + column[None, :],
            mask=out_inside[:, None] & inside[None, :],
            other=0.0,
            eviction_policy="evict_first",
        )
        total = tl.dot(x_tile, tl.trans(weight_tile), total)
    return total


# A just-in-time launch compiles anew for integers that are 1 or multiples of 16. For these few that
# would only cost time, and where y and y' share a variable the two would not have one type.
@triton.jit(
    do_not_specialize=[
        *("rows", "base_out", "channel_out"),
        *("y_stride", "y_channel_stride", "has_bias"),
    ]
)
def otter_linear(
    x,  # [rows, base_in], the rows x_stride apart; likewise x_channel, y and y_channel
    x_channel,  # [rows, channel_in]
    weight,  # W [base_out, base_in]
    from_base,  # A [channel_out, base_in]
    from_channel,  # B [channel_out, channel_in]
    bias,  # b [base_out], or anything if has_bias is 0
    bias_channel,  # b' [channel_out], likewise
    y,  # [rows, base_out]
    y_channel,  # [rows, channel_out]
    rows,
    base_in,
    channel_in,
    base_out,
    channel_out,
    x_stride,
    x_channel_stride,
    y_stride,
    y_channel_stride,
    has_bias,  # 0 or 1
    ROWS: tl.constexpr,
    OUTS: tl.constexpr,
    INS: tl.constexpr,
):
    """One tile of y or of y'. All tensors are float16 or all are bfloat16; weights are dense."""
    tile = tl.program_id(0)
    channel_tiles = tl.cdiv(channel_out, OUTS)
    is_channel = tile < channel_tiles
    if is_channel:
        weight, bias, width_out = from_base, bias_channel, channel_out
        y, y_stride = y_channel, y_channel_stride
    else:
        tile -= channel_tiles
        width_out = base_out

    # 64-bit offsets: a long prefill times a wide layer exceeds 2^31 values.
    row = (tl.program_id(1) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    out = (tile * OUTS + tl.arange(0, OUTS)).to(tl.int64)
    row_inside = row < rows
    out_inside = out < width_out

    total = tl.zeros((ROWS, OUTS), dtype=tl.float32)
    total = _add_product(
        total, x + row * x_stride, weight + out * base_in, row_inside, out_inside, base_in, INS
    )
    if is_channel:
        total = _add_product(
            total,
            x_channel + row * x_channel_stride,
            from_channel + out * channel_in,
            row_inside,
            out_inside,
            channel_in,
            INS,
        )
    # Without a bias no output is inside, and nothing is read.
    bias_inside = out < width_out * has_bias
    total += tl.load(bias + out, mask=bias_inside, other=0.0).to(tl.float32)[None, :]
    tl.store(
        y + row[:, None] * y_stride + out[None, :],
        total.to(y.dtype.element_ty),
        mask=row_inside[:, None] & out_inside[None, :],
    )


def launch(
    tile: Tile,
    x: Tensor,
    x_channel: Tensor,
    weights: tuple[Tensor, Tensor, Tensor],
    biases: tuple[Tensor, Tensor] | None,
    y: Tensor,
    y_channel: Tensor,
) -> None:
    """Compile the kernel for these arguments, if that has not been done, and launch it.

    Args:
        tile: Tile sizes; any tile is correct for any shape.
        x: ``[rows, base_in]``, float16 or bfloat16, like all others. Rows of x, x_channel, y and
            y_channel may lie apart, as in a slice of columns; weights and biases are dense.
        x_channel: ``[rows, channel_in]``.
        weights: W ``[base_out, base_in]``, A ``[channel_out, base_in]`` and B ``[channel_out,
            channel_in]``.
        biases: b ``[base_out]`` and b' ``[channel_out]``, or None.
        y: ``[rows, base_out]``; written.
        y_channel: ``[rows, channel_out]``; written.
    """
    weight, from_base, from_channel = weights
    bias, bias_channel = biases or (weight, from_base)
    rows, base_in = x.shape
    widths = Widths(base_in, x_channel.shape[1], weight.shape[0], from_base.shape[0])
    otter_linear[grid(tile, rows, widths)](
        *(x, x_channel, weight, from_base, from_channel, bias, bias_channel, y, y_channel),
        *(rows, *dataclasses.astuple(widths)),
        *(tensor.stride(0) for tensor in (x, x_channel, y, y_channel)),
        int(biases is not None),
        ROWS=tile.rows,
        OUTS=tile.outs,
        INS=tile.ins,
        num_warps=tile.warps,
        num_stages=tile.stages,
        enable_fp_fusion=True,
    )
