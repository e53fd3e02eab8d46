"""Gemma: Llama's modules; norms multiply by one more than their weight, scaled embeddings."""

import dataclasses

from otter_export.families import llama

FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="gemma",
    model_types=("gemma",),
    norm_offset=1.0,
    scaled_embedding=True,
    biases={f"self_attn.{name}_proj": "attention_bias" for name in "qkvo"},
    tied=True,
    refused=(("use_bidirectional_attention", False, "every token sees those before it only"),),
)
