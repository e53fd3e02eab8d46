"""Granite: Llama's modules; scales of embedding, residuals, scores and logits."""

import dataclasses

from otter_export.families import llama

FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="granite",
    model_types=("granite",),
    settings=(
        *("embedding_multiplier", "residual_multiplier", "attention_multiplier"),
        "logits_scaling",
    ),
)
