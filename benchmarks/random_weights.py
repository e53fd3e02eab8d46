"""Weights that nothing was trained on, for any ``config.json``: they cost the same time."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from otter_export.base_model import BaseModel
from otter_export.safetensors_io import PlannedTensor, from_float32, write_safetensors


def write_random_weights(directory: Path, dtype: str = "BF16") -> None:
    """Write ``model.safetensors`` beside a ``config.json``, in bfloat16 or another type.

    A block of random values is repeated; its length is prime, so that no two rows are the same.
    """
    base = BaseModel.open(directory)
    block = np.random.default_rng(0).standard_normal(1_000_003).astype(np.float32)
    norms = {f"{norm.name}.weight" for norm in base.sites.norms}

    def planned() -> Iterator[PlannedTensor]:
        for name, shape in base.tensors.items():
            values = 1 + 0.1 * block if name in norms else shape[-1] ** -0.5 * block
            bits = from_float32(values, dtype)
            yield PlannedTensor(name, dtype, shape, functools.partial(np.resize, bits, shape))

    write_safetensors(directory / "model.safetensors", planned(), {"format": "pt"})
