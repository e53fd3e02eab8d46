"""The registered base families; a new one is a file here and a line below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from otter_export.errors import ConfigError, UnsupportedError
from otter_export.families.refused import REFUSED
from otter_export.family import Family
from otter_export.registry import Registry
from otter_export.wrappers import WRAPPERS

FAMILIES: Registry[Family] = Registry("base family", expected=Family)
FAMILIES.register("llama", "otter_export.families.llama:FAMILY")
FAMILIES.register("gpt2", "otter_export.families.gpt2:FAMILY")
FAMILIES.register("qwen2", "otter_export.families.qwen2:FAMILY")
FAMILIES.register("mistral", "otter_export.families.mistral:FAMILY")
FAMILIES.register("ministral3", "otter_export.families.ministral3:FAMILY")
FAMILIES.register("qwen3", "otter_export.families.qwen3:FAMILY")
FAMILIES.register("gemma", "otter_export.families.gemma:FAMILY")
FAMILIES.register("gemma2", "otter_export.families.gemma2:FAMILY")
FAMILIES.register("gemma3", "otter_export.families.gemma3:FAMILY")
FAMILIES.register("phi", "otter_export.families.phi:FAMILY")
FAMILIES.register("phi3", "otter_export.families.phi3:FAMILY")
FAMILIES.register("smollm3", "otter_export.families.smollm3:FAMILY")
FAMILIES.register("granite", "otter_export.families.granite:FAMILY")
FAMILIES.register("olmo2", "otter_export.families.olmo2:FAMILY")
FAMILIES.register("olmo3", "otter_export.families.olmo3:FAMILY")
FAMILIES.register("exaone4", "otter_export.families.exaone4:FAMILY")
FAMILIES.register("glm", "otter_export.families.glm:FAMILY")
FAMILIES.register("glm4", "otter_export.families.glm4:FAMILY")
FAMILIES.register("cohere", "otter_export.families.cohere:FAMILY")
FAMILIES.register("cohere2", "otter_export.families.cohere2:FAMILY")
FAMILIES.register("helium", "otter_export.families.helium:FAMILY")
FAMILIES.register("ernie4_5", "otter_export.families.ernie4_5:FAMILY")
FAMILIES.register("seed_oss", "otter_export.families.seed_oss:FAMILY")
FAMILIES.register("starcoder2", "otter_export.families.starcoder2:FAMILY")
FAMILIES.register("arcee", "otter_export.families.arcee:FAMILY")
FAMILIES.register("nemotron", "otter_export.families.nemotron:FAMILY")
FAMILIES.register("stablelm", "otter_export.families.stablelm:FAMILY")
FAMILIES.register("gpt_neox", "otter_export.families.gpt_neox:FAMILY")


def family_of(data: Mapping[str, Any], source: str) -> Family:
    """The family of a parsed config.json.

    Raises:
        ConfigError: There is no ``model_type``.
        UnsupportedError: No family covers it: says what is missing, or which types are covered.
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
    if model_type in REFUSED:
        raise UnsupportedError(
            f"{source}: model_type {model_type!r} is not supported: {REFUSED[model_type]}"
        )
    raise UnsupportedError(
        f"{source}: model_type {model_type!r:.60} has no family; supported: "
        f"{', '.join(sorted(known))}; text models of {', '.join(WRAPPERS)}. "
        "A family is one table: see docs/adding_a_family.md"
    )
