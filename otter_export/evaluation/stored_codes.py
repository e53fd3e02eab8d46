"""Quantised weights as an engine stores them, turned back into numbers by numpy alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export.safetensors_io import FloatArray


@dataclasses.dataclass(frozen=True)
class Quantized:
    """A quantised weight as stored.

    Args:
        bits: 8 or 4.
        steps: Size of one step in each block, ``[out, blocks, 1]``.
        codes: ``[out, blocks, block size]``.
        symmetric: Zero is the middle code in every block; else each block has its own zero point.
        half: Weights were rounded to float16 before, and steps after.
    """

    bits: int
    steps: FloatArray
    codes: npt.NDArray[np.uint8]
    symmetric: bool
    half: bool = False


def dequantized(
    bits: int,
    packed: npt.NDArray[np.uint8],
    scales: FloatArray,
    zero_points: npt.NDArray[np.uint8] | None,
) -> tuple[FloatArray, Quantized]:
    """What the inputs of MatMulNBits (com.microsoft, version 1) stand for.

    Args:
        bits: 8 or 4.
        packed: ``[out, blocks, bytes]``.
        scales: ``[out, blocks]``.
        zero_points: ``[out, bytes]``, padded to whole bytes; None for the middle code.

    Returns:
        ``[out, blocks * block size]``, and how they were made.
    """
    codes = _unpack(packed, bits)
    rows, blocks, _ = codes.shape
    zeros: Any = 2 ** (bits - 1)
    if zero_points is not None:
        zeros = _unpack(zero_points, bits)[:, :blocks, None].astype(np.float32)
    scales = scales.reshape(rows, blocks, 1)
    values = (codes.astype(np.float32) - zeros) * scales
    return values.reshape(rows, -1), Quantized(bits, np.abs(scales), codes, zero_points is None)


def dequantized_linear(
    bits: int, codes: npt.NDArray[Any], scales: npt.NDArray[Any]
) -> tuple[FloatArray, Quantized]:
    """What the inputs of DequantizeLinear stand for.

    Args:
        bits: 8 or 4.
        codes: ``[in, out]``, signed.
        scales: ``[out]``, or ``[blocks, out]``.

    Returns:
        ``[out, in]``, and how they were made.
    """
    columns, rows = codes.shape
    steps = np.abs(scales.reshape(-1, rows).T.astype(np.float32))[:, :, None]
    signed = codes.T.astype(np.int16).reshape(rows, steps.shape[1], -1)
    values = (signed * steps).astype(np.float32).reshape(rows, columns)
    unsigned = (signed + 2 ** (bits - 1)).astype(np.uint8)
    return values, Quantized(bits, steps, unsigned, True, half=scales.dtype == np.float16)


def _unpack(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """``[..., bytes]`` to codes ``[..., bytes * 8 / bits]``; low half byte first."""
    if bits == 8:
        return packed
    halves = np.stack((packed & 0x0F, packed >> 4), axis=-1)
    return halves.reshape(*packed.shape[:-1], -1)
