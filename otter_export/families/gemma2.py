"""Gemma 2: Gemma with four norms a layer, a window in every other layer, and soft caps."""

import dataclasses

from otter_export.families import gemma

FAMILY = dataclasses.replace(
    gemma.FAMILY,
    name="gemma2",
    model_types=("gemma2",),
    norms=(
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
    post_norms={
        "self_attn.o_proj": "post_attention_layernorm",
        "mlp.down_proj": "post_feedforward_layernorm",
    },
    windowed=True,
    settings=(
        *("layer_types", "query_pre_attn_scalar"),
        *("attn_logit_softcapping", "final_logit_softcapping"),
    ),
    defaults={"query_pre_attn_scalar": 256, "final_logit_softcapping": 30.0},
)
