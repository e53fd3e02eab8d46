"""What public config.json files say: sizes and settings, written down by hand.

Labels, dropout and other keys that no model depends on are left out; what a file leaves out of the
model's own settings is left out here too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Public:
    """One public model.

    Args:
        config: Of its config.json.
        windows: How many layers have a window, and how wide it is.
        unrotated: How many layers do not rotate queries and keys.
        positions: The longest sequence that is built, where config.json says more.
    """

    config: Mapping[str, Any]
    windows: tuple[int, int] | None = None
    unrotated: int = 0
    positions: int | None = None


def _public(
    model_type: str,
    sizes: tuple[int, ...],
    windows: tuple[int, int] | None = None,
    unrotated: int = 0,
    positions: int | None = None,
    **settings: Any,
) -> Public:
    """``sizes``: width, inner width, layers, heads, key/value heads, vocabulary, positions."""
    keys = (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
        *("num_key_value_heads", "vocab_size", "max_position_embeddings"),
    )
    config = {"model_type": model_type, **dict(zip(keys, sizes, strict=True)), **settings}
    return Public(config, windows, unrotated, positions)


_LINEAR_8 = {"factor": 8.0, "rope_type": "linear"}
_GEMMA = {"rms_norm_eps": 1e-06, "rope_theta": 10000.0}
_GEMMA_2 = {
    **_GEMMA,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}


def _llama3(factor: float) -> dict[str, Any]:
    return {
        "factor": factor,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    }


#: Its factors are not the published ones.
_LONGROPE = {
    "short_factor": [1.0 + i / 100 for i in range(48)],
    "long_factor": [1.0 + i for i in range(48)],
    "type": "longrope",
}
_PHI_3 = {
    "original_max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}
_PHI_3_SIZES = (3072, 8192, 32, 32, 32, 32064)
_MROPE = {"type": "mrope", "mrope_section": [16, 24, 24]}
_ALL_BUT_FOURTH = ["sliding_attention"] * 3 + ["full_attention"]

PUBLIC: Mapping[str, Public] = {
    "Llama-3.2-1B": _public(
        *("llama", (2048, 8192, 16, 32, 8, 128256, 131072)),
        attention_bias=False,
        head_dim=64,
        hidden_act="silu",
        mlp_bias=False,
        rms_norm_eps=1e-05,
        rope_scaling=_llama3(32.0),
        rope_theta=500000.0,
        tie_word_embeddings=True,
    ),
    "Llama-2-7b": _public(
        *("llama", (4096, 11008, 32, 32, 32, 32000, 4096)),
        hidden_act="silu",
        rms_norm_eps=1e-05,
        rope_scaling=None,
        tie_word_embeddings=False,
    ),
    "Qwen2.5-0.5B": _public(
        *("qwen2", (896, 4864, 24, 14, 2, 151936, 32768)),
        hidden_act="silu",
        max_window_layers=24,
        rms_norm_eps=1e-06,
        rope_theta=1000000.0,
        sliding_window=32768,
        tie_word_embeddings=True,
        use_mrope=False,
        use_sliding_window=False,
    ),
    "Qwen3-0.6B": _public(
        *("qwen3", (1024, 3072, 28, 16, 8, 151936, 40960)),
        attention_bias=False,
        head_dim=128,
        hidden_act="silu",
        max_window_layers=28,
        rms_norm_eps=1e-06,
        rope_scaling=None,
        rope_theta=1000000,
        sliding_window=None,
        tie_word_embeddings=True,
        use_sliding_window=False,
    ),
    "Mistral-7B-v0.1": _public(
        *("mistral", (4096, 14336, 32, 32, 8, 32000, 32768)),
        windows=(32, 4096),
        hidden_act="silu",
        rms_norm_eps=1e-05,
        rope_theta=10000.0,
        sliding_window=4096,
        tie_word_embeddings=False,
    ),
    "Mistral-7B-v0.3": _public(
        *("mistral", (4096, 14336, 32, 32, 8, 32768, 32768)),
        hidden_act="silu",
        rms_norm_eps=1e-05,
        rope_theta=1000000.0,
        sliding_window=None,
        tie_word_embeddings=False,
    ),
    "Gemma-2b": _public(
        *("gemma", (2048, 16384, 18, 8, 1, 256000, 8192)),
        **_GEMMA,
        head_dim=256,
        hidden_act="gelu",
        hidden_activation=None,
        rope_scaling=None,
    ),
    "Gemma-2-2b": _public(
        *("gemma2", (2304, 9216, 26, 8, 4, 256000, 8192)), windows=(13, 4096), **_GEMMA_2
    ),
    "Gemma-3-1b": _public(
        *("gemma3_text", (1152, 6912, 26, 4, 1, 262144, 32768)),
        windows=(22, 512),
        attention_bias=False,
        attn_logit_softcapping=None,
        cache_implementation="hybrid",
        eos_token_id=[1, 106],
        final_logit_softcapping=None,
        head_dim=256,
        hidden_activation="gelu_pytorch_tanh",
        query_pre_attn_scalar=256,
        rms_norm_eps=1e-06,
        rope_local_base_freq=10000,
        rope_scaling=None,
        rope_theta=1000000,
        sliding_window=512,
        sliding_window_pattern=6,
    ),
    "Gemma-3-4b": Public(
        {
            "model_type": "gemma3",
            "eos_token_id": [1, 106],
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "model_type": "gemma3_text",
                "num_hidden_layers": 34,
                "rope_scaling": _LINEAR_8,
                "sliding_window": 1024,
            },
        },
        windows=(29, 1024),
    ),
    "Gemma-3-12b": Public(
        {
            "model_type": "gemma3",
            "eos_token_id": [1, 106],
            "text_config": {
                "hidden_size": 3840,
                "intermediate_size": 15360,
                "model_type": "gemma3_text",
                "num_attention_heads": 16,
                "num_hidden_layers": 48,
                "num_key_value_heads": 8,
                "rope_scaling": _LINEAR_8,
                "sliding_window": 1024,
            },
        },
        windows=(40, 1024),
    ),
    "Phi-2": _public(
        *("phi", (2560, 10240, 32, 32, 32, 51200, 2048)),
        hidden_act="gelu_new",
        layer_norm_eps=1e-05,
        partial_rotary_factor=0.4,
        qk_layernorm=False,
        rope_scaling=None,
        rope_theta=10000.0,
        tie_word_embeddings=False,
    ),
    "Phi-3-mini-4k": _public(
        *("phi3", (*_PHI_3_SIZES, 4096)),
        **_PHI_3,
        windows=(32, 2047),
        rope_scaling=None,
        sliding_window=2047,
    ),
    "Phi-3-mini-128k": _public(
        *("phi3", (*_PHI_3_SIZES, 131072)),
        **_PHI_3,
        windows=(32, 262144),
        positions=4096,
        rope_scaling=_LONGROPE,
        sliding_window=262144,
    ),
    "Phi-4": _public(
        *("phi3", (5120, 17920, 40, 40, 10, 100352, 16384)),
        original_max_position_embeddings=16384,
        rms_norm_eps=1e-05,
        rope_scaling=None,
        rope_theta=250000,
        sliding_window=None,
        tie_word_embeddings=False,
    ),
    "Phi-4-mini": _public(
        *("phi3", (3072, 8192, 32, 24, 8, 200064, 131072)),
        windows=(32, 262144),
        positions=4096,
        original_max_position_embeddings=4096,
        partial_rotary_factor=0.75,
        rms_norm_eps=1e-05,
        rope_scaling=_LONGROPE,
        rope_theta=10000.0,
        sliding_window=262144,
        tie_word_embeddings=True,
    ),
    "SmolLM3-3B": _public(
        *("smollm3", (2048, 11008, 36, 16, 4, 128256, 65536)),
        unrotated=9,
        attention_bias=False,
        hidden_act="silu",
        layer_types=["full_attention"] * 36,
        max_window_layers=28,
        mlp_bias=False,
        no_rope_layer_interval=4,
        no_rope_layers=[1, 1, 1, 0] * 9,
        rms_norm_eps=1e-06,
        rope_scaling=None,
        rope_theta=5000000.0,
        sliding_window=None,
        use_sliding_window=False,
    ),
    "Granite-3.1-2b": _public(
        *("granite", (2048, 8192, 40, 32, 8, 49155, 131072)),
        attention_bias=False,
        attention_multiplier=0.015625,
        embedding_multiplier=12.0,
        hidden_act="silu",
        logits_scaling=8.0,
        mlp_bias=False,
        residual_multiplier=0.22,
        rms_norm_eps=1e-05,
        rope_scaling=None,
        rope_theta=5000000.0,
        tie_word_embeddings=True,
    ),
    "OLMo-2-1B": _public(
        *("olmo2", (2048, 8192, 16, 16, 16, 100352, 4096)),
        attention_bias=False,
        hidden_act="silu",
        rms_norm_eps=1e-06,
        rope_scaling=None,
        rope_theta=500000,
        tie_word_embeddings=False,
    ),
    "Olmo-3-7B": _public(
        *("olmo3", (4096, 11008, 32, 32, 32, 100278, 65536)),
        windows=(24, 4096),
        attention_bias=False,
        hidden_act="silu",
        layer_types=_ALL_BUT_FOURTH * 8,
        rms_norm_eps=1e-06,
        rope_scaling={
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "yarn",
        },
        rope_theta=500000,
        sliding_window=4096,
        tie_word_embeddings=False,
    ),
    "EXAONE-4.0-1.2B": _public(
        *("exaone4", (2048, 4096, 30, 32, 8, 102400, 65536)),
        head_dim=64,
        hidden_act="silu",
        layer_types=["full_attention"] * 30,
        rms_norm_eps=1e-05,
        rope_scaling=_llama3(16.0),
        rope_theta=1000000,
        sliding_window=None,
        sliding_window_pattern=None,
        tie_word_embeddings=True,
    ),
    "EXAONE-4.0-32B": _public(
        *("exaone4", (5120, 27392, 64, 40, 8, 102400, 131072)),
        windows=(48, 4096),
        unrotated=16,
        head_dim=128,
        hidden_act="silu",
        layer_types=_ALL_BUT_FOURTH * 16,
        rms_norm_eps=1e-05,
        rope_scaling=_llama3(16.0),
        rope_theta=1000000,
        sliding_window=4096,
        sliding_window_pattern="LLLG",
        tie_word_embeddings=False,
    ),
    "GLM-4-9b-hf": _public(
        *("glm", (4096, 13696, 40, 32, 2, 151552, 131072)),
        attention_bias=True,
        head_dim=128,
        hidden_act="silu",
        partial_rotary_factor=0.5,
        rms_norm_eps=1.5625e-07,
        rope_theta=10000.0,
        tie_word_embeddings=False,
    ),
    "GLM-4-9B-0414": _public(
        *("glm4", (4096, 13696, 40, 32, 2, 151552, 32768)),
        attention_bias=True,
        head_dim=128,
        hidden_act="silu",
        partial_rotary_factor=0.5,
        rms_norm_eps=1e-05,
        rope_theta=10000.0,
        tie_word_embeddings=False,
    ),
    "Command-R7B": _public(
        *("cohere2", (4096, 14336, 32, 32, 8, 256000, 8192)),
        windows=(24, 4096),
        unrotated=8,
        attention_bias=False,
        head_dim=128,
        hidden_act="silu",
        layer_norm_eps=1e-05,
        layer_switch=4,
        logit_scale=0.25,
        order_of_interleaved_layers="local_attn_first",
        position_embedding_type="rope_gptj",
        rope_scaling=None,
        rope_theta=50000,
        rotary_pct=1.0,
        sliding_window=4096,
        sliding_window_pattern=4,
        use_embedding_sharing=True,
        use_gated_activation=True,
        use_parallel_block=True,
        use_qk_norm=False,
    ),
    "Helium-1-2b": _public(
        *("helium", (2560, 7040, 24, 20, 20, 48000, 4096)),
        attention_bias=False,
        head_dim=128,
        hidden_act="silu",
        mlp_bias=False,
        rms_norm_eps=1e-08,
        rope_theta=100000.0,
        tie_word_embeddings=False,
    ),
    "ERNIE-4.5-0.3B": _public(
        *("ernie4_5", (1024, 3072, 18, 16, 2, 103424, 131072)),
        head_dim=128,
        hidden_act="silu",
        rms_norm_eps=1e-05,
        rope_scaling=None,
        rope_theta=500000.0,
        tie_word_embeddings=True,
        use_bias=False,
    ),
    "Seed-OSS-36B": _public(
        *("seed_oss", (5120, 27648, 64, 80, 8, 155136, 524288)),
        attention_bias=True,
        attention_out_bias=False,
        head_dim=128,
        hidden_act="silu",
        mlp_bias=False,
        rms_norm_eps=1e-06,
        rope_scaling={"rope_type": "default"},
        rope_theta=10000000.0,
        tie_word_embeddings=False,
    ),
    "StarCoder2-3b": _public(
        *("starcoder2", (3072, 12288, 30, 24, 2, 49152, 16384)),
        windows=(30, 4096),
        hidden_act="gelu_pytorch_tanh",
        mlp_type="default",
        norm_epsilon=1e-05,
        norm_type="layer_norm",
        rope_theta=999999.4420358813,
        sliding_window=4096,
        use_bias=True,
    ),
    "AFM-4.5B": _public(
        *("arcee", (2560, 18432, 36, 20, 4, 128004, 65536)),
        attention_bias=False,
        head_dim=128,
        hidden_act="relu2",
        mlp_bias=False,
        rms_norm_eps=1e-05,
        rope_scaling={
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 20.0,
            "mscale": 1.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "type": "yarn",
        },
        rope_theta=10000.0,
        tie_word_embeddings=False,
    ),
    "Nemotron-Mini-4B": _public(
        *("nemotron", (3072, 9216, 32, 24, 8, 256000, 4096)),
        attention_bias=False,
        head_dim=128,
        hidden_act="relu2",
        mlp_bias=False,
        norm_eps=1e-05,
        partial_rotary_factor=0.5,
        rope_theta=10000,
        tie_word_embeddings=False,
    ),
    "StableLM-2-1.6b": _public(
        *("stablelm", (2048, 5632, 24, 32, 32, 100352, 4096)),
        hidden_act="silu",
        layer_norm_eps=1e-05,
        partial_rotary_factor=0.25,
        rope_theta=10000,
        tie_word_embeddings=False,
        use_qkv_bias=True,
    ),
    "Pythia-70m": Public(
        {
            "model_type": "gpt_neox",
            "hidden_act": "gelu",
            "hidden_size": 512,
            "intermediate_size": 2048,
            "layer_norm_eps": 1e-05,
            "max_position_embeddings": 2048,
            "num_attention_heads": 8,
            "num_hidden_layers": 6,
            "rotary_emb_base": 10000,
            "rotary_pct": 0.25,
            "tie_word_embeddings": False,
            "use_parallel_residual": True,
            "vocab_size": 50304,
        }
    ),
    "GPT-2": Public(
        {
            "model_type": "gpt2",
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-05,
            "n_ctx": 1024,
            "n_embd": 768,
            "n_head": 12,
            "n_layer": 12,
            "n_positions": 1024,
            "vocab_size": 50257,
        }
    ),
    "LLaVA-1.5-7b": Public(
        {
            "model_type": "llava",
            "text_config": {
                "architectures": ["LlamaForCausalLM"],
                "max_position_embeddings": 4096,
                "model_type": "llama",
                "rms_norm_eps": 1e-05,
                "vocab_size": 32064,
            },
        }
    ),
    "Pixtral-12b": Public(
        {
            "model_type": "llava",
            "text_config": {
                "head_dim": 128,
                "hidden_size": 5120,
                "intermediate_size": 14336,
                "max_position_embeddings": 1024000,
                "model_type": "mistral",
                "num_hidden_layers": 40,
                "num_key_value_heads": 8,
                "rms_norm_eps": 1e-05,
                "rope_theta": 1000000000.0,
                "sliding_window": None,
                "vocab_size": 131072,
            },
        }
    ),
    "Qwen2-VL-2B": _public(
        *("qwen2_vl", (1536, 8960, 28, 12, 2, 151936, 32768)),
        hidden_act="silu",
        max_window_layers=28,
        rms_norm_eps=1e-06,
        rope_scaling=_MROPE,
        rope_theta=1000000.0,
        sliding_window=32768,
        tie_word_embeddings=True,
        use_sliding_window=False,
    ),
    "Qwen2.5-VL-3B": _public(
        *("qwen2_5_vl", (2048, 11008, 36, 16, 2, 151936, 128000)),
        hidden_act="silu",
        max_window_layers=70,
        rms_norm_eps=1e-06,
        rope_scaling=_MROPE,
        rope_theta=1000000.0,
        sliding_window=32768,
        tie_word_embeddings=True,
        use_sliding_window=False,
    ),
    "Qwen3-VL-2B": Public(
        {
            "model_type": "qwen3_vl",
            "tie_word_embeddings": True,
            "text_config": {
                "attention_bias": False,
                "head_dim": 128,
                "hidden_act": "silu",
                "hidden_size": 2048,
                "intermediate_size": 6144,
                "max_position_embeddings": 262144,
                "model_type": "qwen3_vl_text",
                "num_attention_heads": 16,
                "num_hidden_layers": 28,
                "num_key_value_heads": 8,
                "rms_norm_eps": 1e-06,
                "rope_scaling": {
                    "mrope_interleaved": True,
                    "mrope_section": [24, 20, 20],
                    "rope_type": "default",
                },
                "rope_theta": 5000000,
                "tie_word_embeddings": True,
                "vocab_size": 151936,
            },
        }
    ),
}

#: Public files that are refused, and the reason.
REFUSED: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "StableLM-2-12b": (
        {
            **_public("stablelm", (5120, 13824, 40, 32, 8, 100352, 4096)).config,
            "qk_layernorm": True,
            "use_parallel_residual": True,
        },
        "use_parallel_residual = True is not supported",
    ),
    "Command-R+": (
        {
            **_public("cohere", (12288, 33792, 64, 96, 8, 256000, 8192)).config,
            "logit_scale": 0.8333333333333334,
            "use_qk_norm": True,
        },
        "use_qk_norm = True is not supported",
    ),
    "GPT-NeoX with a sequential residual": (
        {
            **_public("gpt_neox", (2048, 8192, 22, 16, 16, 32128, 2048)).config,
            "use_parallel_residual": False,
        },
        "use_parallel_residual = False is not supported",
    ),
    "Mixtral-8x7B": (
        {**_public("mixtral", (4096, 14336, 32, 32, 8, 32000, 32768)).config},
        "'mixtral' is not supported: its feed-forward is a mixture",
    ),
    "A fine-tuned Llama 2 with dynamic scaling": (
        {
            **_public("llama", (4096, 11008, 32, 32, 32, 32000, 4096)).config,
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
        },
        "rope_scaling asks for rotary scaling 'dynamic'",
    ),
    "A Gemma 3 with Gemma 2's cap of logits": (
        {"model_type": "gemma3_text", "final_logit_softcapping": 30.0},
        "final_logit_softcapping = 30.0 is not supported: the base graph has no such cap here",
    ),
    "Gemma 2 in a wrapper": (
        {
            "model_type": "llava",
            "text_config": {"model_type": "gemma2", **_GEMMA_2},
        },
        "final_logit_softcapping = 30.0 is not supported",
    ),
}
