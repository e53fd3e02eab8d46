"""SmolLM3: Llama's modules; every fourth layer does not rotate."""

import dataclasses

from otter_export.families import llama
from otter_export.family import Rotation

FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="smollm3",
    model_types=("smollm3",),
    rotation=Rotation.LISTED,
    windowed=True,
    settings=("layer_types", "no_rope_layers", "no_rope_layer_interval"),
    tied=True,
    defaults={"use_sliding_window": False},
)
