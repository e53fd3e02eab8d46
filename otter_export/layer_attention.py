"""Attention layer by layer, from a base's configuration as transformers completes it.

Published configurations leave out what their classes derive: which layers have a window, and which
rotate their queries and keys. transformers is asked for it, so that no rule is written twice.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from otter_export.base_model import BaseModel
from otter_export.boundary import errors_as
from otter_export.errors import CheckpointError
from otter_export.family import Rotation

#: Name of the rotary table of a base that has one for all layers.
ONE_TABLE = "all"
_WINDOWED = "sliding_attention"


@dataclasses.dataclass(frozen=True)
class LayerAttention:
    """How one layer attends.

    Args:
        window: How many positions a query sees, its own included; None: all before it.
        rotary: Name of the rotary table of its queries and keys; None: they are not rotated.
    """

    window: int | None
    rotary: str | None


def completed_config(base: BaseModel) -> Any:
    """The base's configuration as an object of transformers, without what no model depends on.

    Raises:
        CheckpointError: transformers refuses it.
    """
    from transformers import AutoConfig

    # The classes' own padding token may lie beyond the vocabulary; no model depends on it.
    settings = {**base.library_config, "pad_token_id": None}
    with (
        tempfile.TemporaryDirectory() as directory,
        # Its configuration classes raise exceptions of their own.
        errors_as(CheckpointError, f"transformers cannot load {base.directory}"),
    ):
        # A file, since what it says chooses the class: Mistral with layer_types is Ministral.
        Path(directory, "config.json").write_text(json.dumps(settings), encoding="utf-8")
        return AutoConfig.from_pretrained(directory)


def layer_attention(base: BaseModel) -> tuple[LayerAttention, ...]:
    """The attention of every layer, in order."""
    config, family = completed_config(base), base.family
    listed = getattr(config, "layer_types", None) or ()
    kinds = listed or [_WINDOWED] * base.dimensions.num_hidden_layers
    window = getattr(config, "sliding_window", None) if family.windowed else None
    windows = [window if kind == _WINDOWED else None for kind in kinds]
    if family.rotation is Rotation.NONE:
        return tuple(LayerAttention(w, None) for w in windows)
    each = any(kind in config.rope_parameters for kind in listed)
    tables = [str(kind) if each else ONE_TABLE for kind in kinds]
    rotates = [True] * len(kinds)
    if family.rotation is Rotation.LISTED:
        rotates = [bool(value) for value in config.no_rope_layers]
    elif family.rotation is Rotation.WINDOWED and window is not None:
        rotates = [w is not None for w in windows]
    return tuple(
        LayerAttention(w, table if turns else None)
        for w, table, turns in zip(windows, tables, rotates, strict=True)
    )
