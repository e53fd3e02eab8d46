"""Gemma 3, text: Gemma 2 without soft caps, with a norm of each query and key head."""

import dataclasses

from otter_export.families import gemma2
from otter_export.family import HeadNorm, Space

FAMILY = dataclasses.replace(
    gemma2.FAMILY,
    name="gemma3",
    model_types=("gemma3_text",),
    head_norms=(
        HeadNorm("self_attn.q_norm", Space.QUERY, axis=1),
        HeadNorm("self_attn.k_norm", Space.KEY, axis=1),
    ),
    settings=(
        *("layer_types", "query_pre_attn_scalar", "sliding_window_pattern"),
        "rope_local_base_freq",
    ),
    refused=(
        *gemma2.FAMILY.refused,
        ("attn_logit_softcapping", None, "transformers' model has no such cap"),
        ("final_logit_softcapping", None, "the base graph has no such cap here"),
    ),
    defaults={"query_pre_attn_scalar": 256},
)
