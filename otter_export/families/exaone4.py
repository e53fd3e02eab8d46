"""EXAONE 4: norms behind attention and feed-forward, and of each query and key head."""

import dataclasses

from otter_export.families import olmo2
from otter_export.family import HeadNorm, Rotation, Space

FAMILY = dataclasses.replace(
    olmo2.FAMILY,
    name="exaone4",
    model_types=("exaone4",),
    head_norms=(
        HeadNorm("self_attn.q_norm", Space.QUERY, axis=1),
        HeadNorm("self_attn.k_norm", Space.KEY, axis=1),
    ),
    biases={},
    rotation=Rotation.WINDOWED,
    windowed=True,
    settings=("layer_types", "sliding_window_pattern"),
)
