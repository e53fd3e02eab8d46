"""The sizes that transformers takes where config.json leaves them out, by model type.

Files of wrappers hold of their text model's sizes only those that differ from these. A model type
without a row must say every size.
"""

from __future__ import annotations

from collections.abc import Mapping

#: Standard names of the columns; None is derived from the others.
SIZE_KEYS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
    *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"),
)
_ROWS: Mapping[str, tuple[int | None, ...]] = {
    "arcee": (32000, 2560, 18432, 32, 32, None, None, 4096),
    "cohere": (256000, 8192, 22528, 40, 64, None, None, 8192),
    "cohere2": (256000, 8192, 22528, 40, 64, None, None, 8192),
    "ernie4_5": (103424, 1024, 3072, 18, 16, 2, 128, 131072),
    "exaone4": (102400, 4096, 16384, 32, 32, 32, None, 2048),
    "gemma": (256000, 3072, 24576, 28, 16, 16, 256, 8192),
    "gemma2": (256000, 2304, 9216, 26, 8, 4, 256, 8192),
    "gemma3_text": (262208, 2304, 9216, 26, 8, 4, 256, 131072),
    "glm": (151552, 4096, 13696, 40, 32, 2, 128, 131072),
    "glm4": (151552, 4096, 13696, 40, 32, 2, 128, 131072),
    "gpt2": (50257, 768, None, 12, 12, None, None, 1024),
    "gpt_neox": (50432, 6144, 24576, 44, 64, None, None, 2048),
    "granite": (32000, 4096, 11008, 32, 32, None, None, 2048),
    "helium": (48000, 2560, 7040, 24, 20, 20, 128, 4096),
    "llama": (32000, 4096, 11008, 32, 32, None, None, 2048),
    "ministral": (32000, 4096, 14336, 32, 32, 8, None, 131072),
    "ministral3": (131072, 4096, 14336, 34, 32, 8, 128, 262144),
    "mistral": (32000, 4096, 14336, 32, 32, 8, None, 131072),
    "nemotron": (256000, 6144, 24576, 32, 48, None, None, 4096),
    "olmo2": (50304, 4096, 11008, 32, 32, None, None, 2048),
    "olmo3": (50304, 4096, 11008, 32, 32, None, None, 2048),
    "phi": (51200, 2048, 8192, 24, 32, None, None, 2048),
    "phi3": (32064, 3072, 8192, 32, 32, None, None, 4096),
    "qwen2": (151936, 4096, 22016, 32, 32, 32, None, 32768),
    "qwen2_5_vl_text": (152064, 8192, 29568, 80, 64, 8, None, 32768),
    "qwen2_vl_text": (152064, 8192, 29568, 80, 64, 8, None, 32768),
    "qwen3": (151936, 4096, 22016, 32, 32, 32, 128, 32768),
    "qwen3_vl_text": (151936, 4096, 22016, 32, 32, 32, 128, 128000),
    "seed_oss": (155136, 4096, 27648, 64, 80, 8, 128, 524288),
    "smollm3": (128256, 2048, 11008, 36, 16, 4, None, 32768),
    "stablelm": (50304, 2560, 6912, 32, 32, 32, None, 4096),
    "starcoder2": (49152, 3072, 12288, 30, 24, 2, None, 4096),
}


def default_sizes(model_type: object) -> dict[str, int]:
    """The sizes of a model type that are not derived, by standard name."""
    row = _ROWS.get(str(model_type), ())
    return {key: value for key, value in zip(SIZE_KEYS, row, strict=False) if value is not None}
