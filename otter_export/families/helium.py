"""Helium: Llama's modules, neighbours rotated."""

import dataclasses

from otter_export.families import llama

FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="helium",
    model_types=("helium",),
    interleaved=True,
    biases={
        **{f"self_attn.{name}_proj": "attention_bias" for name in "qkv"},
        **{f"mlp.{name}_proj": "mlp_bias" for name in ("gate", "up", "down")},
    },
)
