"""GLM-4 (9b): fused gate and up, neighbours rotated, in half of each head."""

import dataclasses

from otter_export.families import llama
from otter_export.family import Projection, Space

FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="glm",
    model_types=("glm",),
    projections=(
        *llama.PROJECTIONS[:4],
        Projection("mlp.gate_up_proj", Space.HIDDEN, Space.INNER, "gate", "mlp.gate_proj"),
        Projection("mlp.gate_up_proj", Space.HIDDEN, Space.INNER, "up", "mlp.up_proj"),
        Projection("mlp.down_proj", Space.INNER, Space.HIDDEN),
    ),
    activations=("mlp.activation_fn",),
    interleaved=True,
    partial_rotation=True,
    biases={f"self_attn.{name}_proj": "attention_bias" for name in "qkv"},
    defaults={"attention_bias": True},
)
