"""Mistral and Ministral: Llama's modules; the first release has a window."""

import dataclasses

from otter_export.families import llama

FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="mistral",
    model_types=("mistral", "ministral", "ministral3"),
    biases={},
    windowed=True,
    settings=("layer_types",),
    defaults={"sliding_window": 4096},
)
