"""A linear head of one score as a ``value`` signal: R is its one row, the signal's weight 1."""

from __future__ import annotations

import numpy as np

from otter_export.config import ACTIVATION_BOUNDS
from otter_export.importing.source import Head, HeadOptions
from otter_export.probe import Probe
from otter_export.safetensors_io import FloatArray
from otter_export.signals import Signal


def scalar_head(
    row: FloatArray, bias: float, tensors: frozenset[str], options: HeadOptions
) -> Head:
    """``activation(row n + bias)``.

    Args:
        row: ``[d]``.
        bias: Of the score.
        tensors: The source's tensors that it is made of.
        options: Name and activation.
    """
    activation = "sigmoid" if options.probability else options.activation
    signal = Signal(options.name or "reward", "value", activation, ACTIVATION_BOUNDS[activation])
    stem = f"signals.{signal.name}"
    heads = {
        f"{stem}.weight": np.ones((1, 1), np.float32),
        f"{stem}.bias": np.full(1, bias, np.float32),
    }
    return Head(signal, Probe(np.ascontiguousarray(row[None], np.float32), heads), tensors)
