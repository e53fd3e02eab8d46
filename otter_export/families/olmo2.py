"""OLMo 2: norms behind attention and feed-forward, and one norm over all heads."""

import dataclasses

from otter_export.families import llama
from otter_export.family import HeadNorm, Space

FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="olmo2",
    model_types=("olmo2",),
    norms=("post_attention_layernorm", "post_feedforward_layernorm"),
    post_norms={
        "self_attn.o_proj": "post_attention_layernorm",
        "mlp.down_proj": "post_feedforward_layernorm",
    },
    head_norms=(
        HeadNorm("self_attn.q_norm", Space.QUERY),
        HeadNorm("self_attn.k_norm", Space.KEY),
    ),
    biases={f"self_attn.{name}_proj": "attention_bias" for name in "qkvo"},
)
