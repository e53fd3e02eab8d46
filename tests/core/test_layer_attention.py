"""L0: window and rotary table of each layer, from what published configurations say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from otter_export.base_model import BaseModel
from otter_export.errors import CheckpointError
from otter_export.layer_attention import LayerAttention, completed_config, layer_attention

SIZES = {
    **{"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "head_dim": 16},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128},
    "max_position_embeddings": 128,
}
GPT2 = {"n_embd": 64, "n_head": 4, "n_layer": 4, "n_positions": 128}
FULL, SLIDING = "full_attention", "sliding_attention"
ALTERNATING = [SLIDING, FULL] * 2
DEFAULT = {"rope_type": "default", "rope_theta": 1e4}


def opened(directory: Path, model_type: str, **settings: Any) -> BaseModel:
    """A base of four layers that is a config.json and no more."""
    config = {"model_type": model_type, **SIZES, **settings}
    (directory / "config.json").write_text(json.dumps(config))
    return BaseModel.open(directory)


@pytest.mark.parametrize(
    ("model_type", "settings", "windows"),
    [
        ("llama", {"sliding_window": 8}, [None] * 4),
        ("mistral", {"sliding_window": 8}, [8] * 4),
        ("mistral", {"sliding_window": None}, [None] * 4),
        # transformers takes Ministral's classes for it.
        ("mistral", {"sliding_window": 8, "layer_types": ALTERNATING}, [8, None, 8, None]),
        ("ministral", {"sliding_window": 8}, [8] * 4),
        ("ministral", {"sliding_window": 8, "layer_types": ALTERNATING}, [8, None, 8, None]),
        # These classes read no kinds of layers, whatever the file says.
        ("ministral3", {"sliding_window": 8, "layer_types": ALTERNATING}, [8] * 4),
        ("starcoder2", {"sliding_window": 8, "layer_types": ALTERNATING}, [8] * 4),
        ("phi3", {"sliding_window": 8}, [8] * 4),
        ("qwen2", {"sliding_window": 8}, [None] * 4),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False}, [None] * 4),
        (
            "qwen2",
            {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3},
            [None, None, None, 8],
        ),
        ("qwen3", {"sliding_window": 8, "use_sliding_window": True}, [None] * 4),  # from layer 28
        ("gemma2", {"sliding_window": 8}, [8, None, 8, None]),
        ("gemma3_text", {"sliding_window": 8, "sliding_window_pattern": 3}, [8, 8, None, 8]),
        ("olmo3", {"sliding_window": 8}, [8, 8, 8, None]),
        ("exaone4", {"sliding_window": 8}, [8, 8, 8, None]),
        ("cohere2", {"sliding_window": 8, "sliding_window_pattern": 2}, [8, None, 8, None]),
        ("gpt2", GPT2, [None] * 4),
    ],
)
def test_windows(
    model_type: str, settings: dict[str, Any], windows: list[int | None], tmp_path: Path
) -> None:
    layers = layer_attention(opened(tmp_path, model_type, **settings))
    assert [layer.window for layer in layers] == windows


@pytest.mark.parametrize(
    ("model_type", "settings", "tables"),
    [
        ("llama", {}, ["all"] * 4),
        ("gpt2", GPT2, [None] * 4),
        ("gemma2", {"sliding_window": 8}, ["all"] * 4),
        ("gemma3_text", {"layer_types": ALTERNATING}, ALTERNATING),
        ("olmo3", {"layer_types": ALTERNATING}, ALTERNATING),
        # No kinds of layers: what is set for them is nobody's.
        ("llama", {"rope_parameters": {FULL: DEFAULT, SLIDING: DEFAULT}}, ["all"] * 4),
        # Every fourth layer, or those that are listed, do not rotate.
        ("smollm3", {}, ["all", "all", "all", None]),
        ("smollm3", {"no_rope_layer_interval": 2}, ["all", None, "all", None]),
        ("smollm3", {"no_rope_layers": [0, 0, 1, 1]}, [None, None, "all", "all"]),
        # Layers without a window do not rotate, ...
        ("cohere2", {"sliding_window": 8, "layer_types": ALTERNATING}, ["all", None] * 2),
        ("exaone4", {"sliding_window": 8}, ["all", "all", "all", None]),
        # ... unless there is none at all (EXAONE 4.0 1.2B).
        ("exaone4", {"sliding_window": None, "layer_types": [FULL] * 4}, ["all"] * 4),
    ],
)
def test_rotary_tables(
    model_type: str, settings: dict[str, Any], tables: list[str | None], tmp_path: Path
) -> None:
    layers = layer_attention(opened(tmp_path, model_type, **settings))
    assert [layer.rotary for layer in layers] == tables


def test_windows_where_layers_do_not_rotate(tmp_path: Path) -> None:
    """SmolLM3 has windows where it does not rotate, if it has any."""
    settings = {"use_sliding_window": True, "sliding_window": 8, "no_rope_layer_interval": 2}
    rotates, does_not = LayerAttention(None, "all"), LayerAttention(8, None)
    assert layer_attention(opened(tmp_path, "smollm3", **settings)) == (rotates, does_not) * 2


def test_a_configuration_that_transformers_refuses(tmp_path: Path) -> None:
    base = opened(tmp_path, "exaone4", sliding_window=None)  # divides by its pattern of 0
    with pytest.raises(CheckpointError, match="transformers cannot load"):
        completed_config(base)
