"""Cohere 2 (Command-R7B, Command-A): windowed layers, the others without rotation."""

import dataclasses

from otter_export.families import cohere
from otter_export.family import Rotation

FAMILY = dataclasses.replace(
    cohere.FAMILY,
    name="cohere2",
    model_types=("cohere2",),
    rotation=Rotation.WINDOWED,
    windowed=True,
    settings=("logit_scale", "layer_types", "sliding_window_pattern"),
    refused=(),
)
