"""Tiny random bases of every family, written by transformers: what the tables are tested on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tests import tiny

#: Two layers of each kind where a family has kinds.
_COMMON: Mapping[str, Any] = {**tiny.SIZES, "pad_token_id": 0}
#: Smaller than the prompts of the tests, so that it shows.
WINDOW = 8
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0 + 0.1 * i for i in range(8)],
    "long_factor": [2.0 + 0.5 * i for i in range(8)],
    "original_max_position_embeddings": 64,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
#: Factors of scores grow from the ninth position on.
_LLAMA4 = {
    **_YARN,
    "original_max_position_embeddings": 8,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.5,
}
#: By kind of layer, as in Gemma 3 from 4B on.
_BY_KIND = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
    "full_attention": {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0},
}
_PARTIAL = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.75}
_ALTERNATING: Mapping[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": WINDOW,
}
#: The first layer has none.
_FROM_SECOND: Mapping[str, Any] = {
    "use_sliding_window": True,
    "sliding_window": WINDOW,
    "max_window_layers": 1,
}
#: A width without a whole square root, so that its rounding shows.
_ROOT: Mapping[str, Any] = {"hidden_size": 80}


@dataclasses.dataclass(frozen=True)
class Case:
    """One base: a model type, and what its config.json says beside the sizes."""

    name: str
    model_type: str
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def _case(name: str, model_type: str | None = None, **config: Any) -> Case:
    return Case(name, model_type or name, config)


CASES = (
    _case("llama-3", "llama", rope_parameters=_LLAMA3),
    _case("mistral", sliding_window=None),
    _case("mistral-window", "mistral", sliding_window=WINDOW),
    _case("ministral", sliding_window=WINDOW),
    _case("ministral3", sliding_window=None),
    _case("ministral3-window", "ministral3", sliding_window=WINDOW, rope_parameters=_LLAMA4),
    _case("qwen2"),
    _case("qwen2-window", "qwen2", **_FROM_SECOND),
    _case("qwen3"),
    _case("qwen3-window", "qwen3", **_FROM_SECOND),
    _case("gemma", **_ROOT, head_dim=32),
    _case("gemma2", **_ROOT, sliding_window=WINDOW, query_pre_attn_scalar=24),
    _case(
        "gemma3",
        "gemma3_text",
        **_ROOT,
        **_ALTERNATING,
        query_pre_attn_scalar=24,
        rope_parameters=_BY_KIND,
    ),
    _case("phi"),
    _case("phi3"),
    _case("phi3-window", "phi3", sliding_window=WINDOW),
    _case("phi3-longrope", "phi3", rope_parameters=_LONGROPE, original_max_position_embeddings=64),
    _case("phi4-mini", "phi3", rope_parameters=_PARTIAL),
    _case("smollm3", num_hidden_layers=4),
    _case("smollm3-window", "smollm3", **_ALTERNATING, use_sliding_window=True),
    _case(
        "granite",
        embedding_multiplier=3.0,
        residual_multiplier=0.5,
        attention_multiplier=0.2,
        logits_scaling=2.0,
    ),
    _case("olmo2"),
    _case("olmo3", **_ALTERNATING),
    _case("olmo3-yarn", "olmo3", **_ALTERNATING, rope_parameters=_YARN),
    _case("exaone4", sliding_window=WINDOW, num_hidden_layers=4),
    _case("glm"),
    _case("glm4"),
    _case("cohere"),
    _case("cohere2", **_ALTERNATING),
    _case("helium"),
    _case("ernie4_5"),
    _case("seed_oss"),
    _case("starcoder2", sliding_window=WINDOW),
    _case("arcee"),
    _case("nemotron"),
    _case("stablelm", use_qkv_bias=True),
    _case("gpt_neox", num_key_value_heads=4),
    Case("gpt2", "gpt2", {"num_key_value_heads": 4}),
)


def config_of(case: Case) -> Any:
    """Its configuration, as transformers completes it."""
    import transformers

    return transformers.AutoConfig.for_model(case.model_type, **{**_COMMON, **case.config})


def write_base(case: Case, directory: Path) -> Path:
    """A random base; norms and biases are not what they are initialised with."""
    import transformers

    config = config_of(case)
    torch.manual_seed(len(case.name))
    model: Any = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = 0.1 if parameter.dim() == 1 else 0.15
            parameter.add_(torch.randn_like(parameter) * noise)
    model.save_pretrained(directory)
    tiny.write_tokenizer(directory, config.vocab_size)
    return directory
