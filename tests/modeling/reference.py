"""Shared by the tests of the torch reference: tiny checkpoints, loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from otter_export.checkpoint import Checkpoint
from otter_export.modeling.otter_model import OtterModel, load_base, load_reference
from tests import tiny


def widths(family: str, size: str = "small") -> dict[str, int]:
    """Channel widths that fit a tiny base: H'/H'kv equals H/Hkv."""
    heads = {"small": 2, "large": 4}[size]
    return {
        "hidden_size": {"small": 16, "large": 40}[size],
        "intermediate_size": {"small": 24, "large": 56}[size],
        "heads": heads,
    }


def load(
    directory: Path, family: str, dtype: torch.dtype = torch.float32, **options: Any
) -> tuple[Any, OtterModel, Checkpoint]:
    """A tiny base, untouched, and the same base with a channel inserted."""
    options = {**widths(family), **options}
    checkpoint = Checkpoint.open(tiny.write_checkpoint(directory / "ck", family, **options))
    base = load_base(checkpoint.base, dtype)
    return base, load_reference(checkpoint, dtype), checkpoint


def tokens(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    """Random ids of the tiny vocabulary, without special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, 128, (rows, length), generator=generator)
