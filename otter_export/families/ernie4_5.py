"""ERNIE 4.5: Llama's modules, neighbours rotated."""

import dataclasses

from otter_export.families import llama

FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="ernie4_5",
    model_types=("ernie4_5",),
    interleaved=True,
    biases={p.path: "use_bias" for p in llama.PROJECTIONS},
    tied=True,
)
