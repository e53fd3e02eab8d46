"""Checks of rotary embeddings: those are built whose tables were compared with transformers'.

mobius-onnx writes cos and sin as tables of ``max_position_embeddings`` rows. For other kinds of
scaling (``yarn``, ``dynamic``, ``longrope``) its tables, or the idea of one table for all lengths,
differ from what transformers computes, so such a base is refused rather than built nearly right.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from otter_export.checkpoint import BaseModel
from otter_export.errors import UnsupportedError

#: tests/graph/test_rotary.py compares each with transformers.
FAITHFUL = ("default", "linear", "llama3")
_FACTOR = "partial_rotary_factor"


def check_scaling(base: BaseModel) -> None:
    """Refuse a base whose rotary embedding would not be built faithfully.

    Raises:
        UnsupportedError: Names the setting and what is accepted.
    """
    source = base.directory / "config.json"
    for key in ("rope_parameters", "rope_scaling"):
        settings = base.data.get(key)
        if settings is None:
            continue
        kind = _kind(settings)
        if kind not in FAITHFUL:
            raise UnsupportedError(
                f"{source}: {key} asks for rotary scaling {kind!r}; "
                f"built faithfully: {', '.join(FAITHFUL)}"
            )
        _check_factor(settings.get(_FACTOR), f"{source}: {key}.{_FACTOR}")
    _check_factor(base.data.get(_FACTOR), f"{source}: {_FACTOR}")


def check_tables(model: ir.Model, base: BaseModel) -> None:
    """The cos and sin tables must have a row for every position that an engine accepts.

    Raises:
        UnsupportedError: They are shorter than ``max_position_embeddings``.
    """
    wanted = base.dimensions.max_position_embeddings
    for name, value in model.graph.initializers.items():
        if not name.endswith((".cos_cache", ".sin_cache")) or value.shape is None:
            continue
        if value.shape[0] != wanted:
            raise UnsupportedError(
                f"{base.directory}: the base graph has a rotary table of {value.shape[0]} rows for "
                f"{wanted} positions (max_position_embeddings)"
            )


def _kind(settings: object) -> object:
    """``rope_type``; tables per layer type are nested dictionaries and have no single one."""
    if not isinstance(settings, Mapping):
        return settings
    if any(isinstance(value, Mapping) for value in settings.values()):
        return "one per layer type"
    return settings.get("rope_type", settings.get("type", "default"))


def _check_factor(factor: Any, where: str) -> None:
    if factor not in (None, 1, 1.0):
        raise UnsupportedError(f"{where} is {factor!r}; only whole heads are rotated here (1.0)")
