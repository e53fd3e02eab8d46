"""Arcee (AFM): Llama's attention, a plain feed-forward layer of squared ReLU."""

import dataclasses

from otter_export.families import llama
from otter_export.family import Projection, Space

FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="arcee",
    model_types=("arcee",),
    projections=(
        *llama.PROJECTIONS[:4],
        Projection("mlp.up_proj", Space.HIDDEN, Space.INNER),
        Projection("mlp.down_proj", Space.INNER, Space.HIDDEN),
    ),
    biases={
        **{f"self_attn.{name}_proj": "attention_bias" for name in "qkvo"},
        **{f"mlp.{name}_proj": "mlp_bias" for name in ("up", "down")},
    },
)
