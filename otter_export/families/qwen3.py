"""Qwen3: Llama's modules, and a norm of each query and key head."""

import dataclasses

from otter_export.families import llama
from otter_export.family import HeadNorm, Space

FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="qwen3",
    model_types=("qwen3",),
    head_norms=(
        HeadNorm("self_attn.q_norm", Space.QUERY, axis=-2),
        HeadNorm("self_attn.k_norm", Space.KEY, axis=-2),
    ),
    biases={f"self_attn.{name}_proj": "attention_bias" for name in "qkvo"},
    windowed=True,
    settings=("layer_types", "max_window_layers"),
    defaults={"use_sliding_window": False},
)
