"""GLM-4 (0414): four norms a layer, fused gate and up, half of each head rotated."""

import dataclasses

from otter_export.families import glm

FAMILY = dataclasses.replace(
    glm.FAMILY,
    name="glm4",
    model_types=("glm4",),
    norms=(
        "input_layernorm",
        "post_self_attn_layernorm",
        "post_attention_layernorm",
        "post_mlp_layernorm",
    ),
    post_norms={
        "self_attn.o_proj": "post_self_attn_layernorm",
        "mlp.down_proj": "post_mlp_layernorm",
    },
)
