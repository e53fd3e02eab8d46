"""Phi-1, Phi-1.5 and Phi-2: parallel residual, one LayerNorm, biases everywhere."""

import dataclasses

from otter_export.families import llama
from otter_export.family import Projection, Space

FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="phi",
    model_types=("phi",),
    norms=("input_layernorm",),
    final_norm="model.final_layernorm",
    layer_norm=True,
    projections=(
        *llama.PROJECTIONS[:3],
        Projection("self_attn.dense", Space.QUERY, Space.HIDDEN, graph_path="self_attn.o_proj"),
        Projection("mlp.fc1", Space.HIDDEN, Space.INNER, graph_path="mlp.up_proj"),
        Projection("mlp.fc2", Space.INNER, Space.HIDDEN, graph_path="mlp.down_proj"),
    ),
    activations=("mlp.activation_fn",),
    partial_rotation=True,
    biases=dict.fromkeys(
        (
            *(f"self_attn.{name}_proj" for name in "qkv"),
            *("self_attn.dense", "mlp.fc1", "mlp.fc2", "lm_head"),
            *("input_layernorm", "model.final_layernorm"),
        ),
        True,
    ),
    refused=(("qk_layernorm", False, "the base graph has no norm of heads here"),),
)
