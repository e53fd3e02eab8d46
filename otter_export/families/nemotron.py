"""Nemotron (Minitron): Arcee's modules, LayerNorm of one more than its weight."""

import dataclasses

from otter_export.families import arcee

FAMILY = dataclasses.replace(
    arcee.FAMILY,
    name="nemotron",
    model_types=("nemotron",),
    layer_norm=True,
    norm_offset=1.0,
    partial_rotation=True,
    biases={
        **(arcee.FAMILY.biases or {}),
        **dict.fromkeys((*arcee.FAMILY.norms, arcee.FAMILY.final_norm), True),
    },
)
