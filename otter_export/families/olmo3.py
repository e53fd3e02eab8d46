"""OLMo 3: OLMo 2 with windows, and rotary tables by kind of layer."""

import dataclasses

from otter_export.families import olmo2

FAMILY = dataclasses.replace(
    olmo2.FAMILY,
    name="olmo3",
    model_types=("olmo3",),
    windowed=True,
    settings=("layer_types",),
)
