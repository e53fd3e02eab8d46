"""Phi-3, Phi-3.5 and Phi-4: fused query, key and value, fused gate and up."""

import dataclasses

from otter_export.families import llama
from otter_export.family import Projection, Space

FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="phi3",
    model_types=("phi3",),
    projections=(
        Projection("self_attn.qkv_proj", Space.HIDDEN, Space.QUERY, "q", "self_attn.q_proj"),
        Projection("self_attn.qkv_proj", Space.HIDDEN, Space.KEY, "k", "self_attn.k_proj"),
        Projection("self_attn.qkv_proj", Space.HIDDEN, Space.VALUE, "v", "self_attn.v_proj"),
        Projection("self_attn.o_proj", Space.QUERY, Space.HIDDEN),
        Projection("mlp.gate_up_proj", Space.HIDDEN, Space.INNER, "gate", "mlp.gate_proj"),
        Projection("mlp.gate_up_proj", Space.HIDDEN, Space.INNER, "up", "mlp.up_proj"),
        Projection("mlp.down_proj", Space.INNER, Space.HIDDEN),
    ),
    resized=(
        ("self_attn", "config.num_attention_heads", Space.QUERY),
        ("self_attn", "num_key_value_heads", Space.KEY),
    ),
    activations=("mlp.activation_fn",),
    partial_rotation=True,
    biases={},
    windowed=True,
    defaults={"original_max_position_embeddings": 4096},
)
