"""The registered base families; a new one is a file here and a line below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otter_export.errors import ConfigError, UnsupportedError
from otter_export.family import Family
from otter_export.registry import Registry

FAMILIES: Registry[Family] = Registry("base family", expected=Family)
FAMILIES.register("llama", "otter_export.families.llama:FAMILY")
FAMILIES.register("gpt2", "otter_export.families.gpt2:FAMILY")
FAMILIES.register("qwen2", "otter_export.families.qwen2:FAMILY")


def family_of(data: Mapping[str, Any], source: str) -> Family:
    """The family of a parsed config.json.

    Raises:
        ConfigError: There is no ``model_type``.
        UnsupportedError: No family covers it; the message lists the covered ones.
    """
    model_type = data.get("model_type")
    if not isinstance(model_type, str):
        raise ConfigError(f"{source}: model_type must be a string, got {model_type!r}")
    known: list[str] = []
    for name in FAMILIES:
        family = FAMILIES.load(name)
        known.extend(family.model_types)
        if model_type in family.model_types:
            return family
    raise UnsupportedError(
        f"{source}: model_type {model_type!r} has no family; supported: {', '.join(known)}. "
        "A family is one table: see docs/adding_a_family.md"
    )
