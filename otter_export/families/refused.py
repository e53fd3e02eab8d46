"""Model types that transformers has and this package refuses, each with what is missing.

A type that stands neither here nor in a family is unknown; a new family is a table.
"""

from __future__ import annotations

from collections.abc import Mapping

_EXPERTS = (
    "its feed-forward is a mixture of experts; a channel beside experts is not built, and int8 "
    "would round their router"
)
_ALIBI = "its attention adds biases of distance to the scores (ALiBi), which no cache form has"
_RECURRENT = "its layers, or some, keep a recurrent or convolved state in place of keys and values"
_LATENT = "its keys and values are projections of a latent vector (MLA), which has no rule"
_SINKS = "its attention has sinks, which take a part of every softmax"
_CROSS = "some of its layers attend to another encoder"

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo", "phimoe", "dbrx"),
            *("jetmoe", "granitemoe", "granitemoeshared", "ernie4_5_moe", "exaone_moe"),
            *("glm4_moe", "dots1", "hunyuan_v1_moe", "minimax_m2", "cohere2_moe", "afmoe"),
            *("llama4", "llama4_text", "aria_text", "solar_open"),
        ),
        _EXPERTS,
    ),
    **dict.fromkeys(("bloom", "mpt"), _ALIBI),
    "falcon": "its attention adds biases of distance (ALiBi) or shares one key head in one fused "
    "projection, and neither has a rule",
    **dict.fromkeys(
        (
            *("mamba", "mamba2", "falcon_mamba", "falcon_h1", "bamba", "jamba", "zamba", "zamba2"),
            *("recurrent_gemma", "rwkv", "xlstm", "nemotron_h", "granitemoehybrid", "lfm2"),
            *("lfm2_moe", "qwen3_next", "qwen3_5_text", "olmo_hybrid", "minimax"),
        ),
        _RECURRENT,
    ),
    **dict.fromkeys(
        (
            *("deepseek_v2", "deepseek_v3", "minicpm3", "glm4_moe_lite", "longcat_flash"),
            *("kimi_linear", "youtu"),
        ),
        _LATENT,
    ),
    **dict.fromkeys(("gpt_oss", "mimo_v2_flash"), _SINKS),
    "mllama": _CROSS,
    "opt": "its position embedding begins two rows late",
    "olmo": "its norms have no weights, so that gamma' has no name",
    "nanochat": "its norms have no weights, so that gamma' has no name",
    "hunyuan_v1_dense": "it norms queries and keys after they are rotated, which the base graph "
    "does not",
    "diffllama": "its attention is the difference of two softmaxes",
    "apertus": "its activation has parameters of its own (xIELU)",
    "doge": "its attention mask is computed from the values",
    **dict.fromkeys(
        ("gemma3n_text", "gemma4_text"),
        "its layers share caches and read embeddings of their own",
    ),
}
