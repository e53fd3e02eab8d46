"""Masks that say which keys a row attends to, in the form that transformers' layers read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from otter_export.modeling.otter_model import OtterModel


def layer_masks(
    model: OtterModel, mask: Tensor, distances: Callable[[], Tensor], dtype: torch.dtype
) -> Any:
    """The mask, or one for each kind of layer: transformers puts no window in given masks.

    Args:
        model: Whose layers read it.
        mask: bool ``[B, 1, S, K]``.
        distances: Gives the positions from each row back to each key, ``[B, 1, S, K]``; asked for
            where layers have a window.
        dtype: Of keys and values.
    """
    config = model.base.config
    window = getattr(config, "sliding_window", None)
    if window is None or not model.windowed:
        return _added(model, mask, dtype)
    near = _added(model, mask & (distances() < window), dtype)
    if getattr(config, "layer_types", None) is None:
        return near
    return {"full_attention": _added(model, mask, dtype), "sliding_attention": near}


def _added(model: OtterModel, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Eager attention (Gemma 2, for its soft cap) adds its mask to the scores."""
    if model.base.config._attn_implementation != "eager":
        return mask
    return torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
