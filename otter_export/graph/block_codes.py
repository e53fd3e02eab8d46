"""Codes of 8 or 4 bits in blocks along a row, as ONNX Runtime's MatMulNBits reads them.

The arithmetic is that of ONNX Runtime's own quantizer, bit for bit. That one takes a transposed
copy in float32 and holds Python's lock; this takes rows as they are stored, on every core.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export.precision import WeightFormat
from otter_export.safetensors_io import FloatArray

Packed = tuple[npt.NDArray[np.uint8], FloatArray, npt.NDArray[np.uint8] | None]

#: The largest float32 below one half: x + this, cut off, is x >= 0 rounded, halves up. With one
#: half itself, the number before one half would be rounded up.
_BELOW_HALF = np.nextafter(np.float32(0.5), np.float32(0))
#: Half a byte of zero points that no block has.
_NO_POINT = 8


def quantize(weight: FloatArray, stored: WeightFormat) -> Packed:
    """Quantise rows ``[out, in]`` of a weight; no row depends on another.

    Args:
        weight: Finite, float32.
        stored: Bits, block, and whether zero is the middle code.

    Returns:
        Packed codes ``[out, blocks, block * bits / 8]``, scales ``[out, blocks]`` and, unless
        symmetric, zero points ``[out, ceil(blocks * bits / 8)]``; of two 4-bit values in a byte,
        the low half comes first. Codes behind the end of a row are zero.
    """
    rows, columns = weight.shape
    block = stored.block or columns
    blocks = -(-columns // block)
    largest = np.float32(2**stored.bits - 1)
    if blocks * block != columns:
        # The last value again, so that it changes no block's range.
        weight = np.pad(weight, ((0, 0), (0, blocks * block - columns)), mode="edge")
    values = weight.reshape(rows, blocks, block)
    # `reduceat` over all of them takes half the time of `reduce` along short rows.
    starts = np.arange(0, values.size, block)
    low: FloatArray = np.minimum.reduceat(values.reshape(-1), starts).reshape(rows, blocks)
    high: FloatArray = np.maximum.reduceat(values.reshape(-1), starts).reshape(rows, blocks)
    scales: FloatArray
    if stored.symmetric:
        middle = np.float32(2 ** (stored.bits - 1))
        scales = np.where(np.abs(high) > np.abs(low), high, low).astype(np.float32) / -middle
        zeros: FloatArray = np.full_like(scales, middle)
    else:
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        scales = np.divide(high - low, largest, dtype=np.float32)
        at_zero = np.divide(-low, scales, out=np.zeros_like(low), where=scales != 0)
        zeros = _rounded(at_zero, largest)
    steps = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales != 0)
    scaled = values * steps[:, :, None]
    scaled += zeros[:, :, None]
    codes = _rounded(scaled, largest).astype(np.uint8)
    codes.reshape(rows, -1)[:, columns:] = 0
    points = None if stored.symmetric else _packed(zeros.astype(np.uint8), stored.bits)
    return _packed(codes, stored.bits), scales, points


def _rounded(values: FloatArray, largest: np.float32) -> FloatArray:
    """To whole numbers from 0 to ``largest``, halves up; in place."""
    values += _BELOW_HALF
    values = values.clip(0, largest, out=values)
    return np.trunc(values, out=values)


def _packed(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[Any]:
    """Two codes of 4 bits to a byte along the last axis; codes of 8 bits as they are."""
    if bits == 8:
        return codes
    if codes.shape[-1] % 2:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, 1)], constant_values=_NO_POINT)
    return codes[..., ::2] | codes[..., 1::2] << np.uint8(4)
