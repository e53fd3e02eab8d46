"""Ministral 3: Mistral's modules, queries scaled by their position; no kinds of layers."""

import dataclasses

from otter_export.families import mistral

FAMILY = dataclasses.replace(
    mistral.FAMILY,
    name="ministral3",
    model_types=("ministral3",),
    settings=(),
    defaults={},
)
