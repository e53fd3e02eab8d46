"""Mistral and Ministral: Llama's modules; a window in all layers, or in some."""

import dataclasses

from otter_export.families import llama

FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="mistral",
    model_types=("mistral", "ministral"),
    biases={},
    windowed=True,
    settings=("layer_types",),
    defaults={"sliding_window": 4096},
)
