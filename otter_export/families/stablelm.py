"""StableLM (3b, 2-1.6b): LayerNorm, a quarter of each head rotated."""

import dataclasses

from otter_export.families import llama
from otter_export.family import Space

FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="stablelm",
    model_types=("stablelm",),
    layer_norm=True,
    partial_rotation=True,
    resized=(
        ("self_attn", "num_heads", Space.QUERY),
        ("self_attn", "num_key_value_heads", Space.KEY),
        ("self_attn", "hidden_size", Space.QUERY),
    ),
    biases={
        **{f"self_attn.{name}_proj": "use_qkv_bias" for name in "qkv"},
        **dict.fromkeys((*llama.FAMILY.norms, llama.FAMILY.final_norm), True),
    },
    refused=(
        ("use_parallel_residual", False, "the base graph has the sequential form only"),
        ("qk_layernorm", False, "the base graph has no norm of heads here"),
    ),
)
