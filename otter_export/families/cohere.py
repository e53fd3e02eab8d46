"""Cohere (Command-R): one norm a layer, neighbours rotated, scaled logits."""

import dataclasses

from otter_export.families import llama

FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="cohere",
    model_types=("cohere",),
    norms=("input_layernorm",),
    layer_norm=True,
    interleaved=True,
    biases={f"self_attn.{name}_proj": "attention_bias" for name in "qkvo"},
    settings=("logit_scale",),
    tied=True,
    defaults={"logit_scale": 0.0625},
    refused=(("use_qk_norm", False, "the base graph has no norm of heads here"),),
)
