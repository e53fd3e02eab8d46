"""Checkpoints of every channel shape, over the families whose layers differ in their biases."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from otter_export.checkpoint import Checkpoint
from tests.built import random_checkpoint
from tests.converters.tensorrt_llm.build import WIDE

MISTRAL = {
    "model_type": "mistral",
    "architectures": ["MistralForCausalLM"],
    "sliding_window": None,
}
#: The bases have two layers, and 8 query heads over 4 key/value heads.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {**WIDE, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("llama", {**WIDE, **MISTRAL}),
    "qwen2": ("qwen2", WIDE),
}
HALF = {"first_layer": 1}
SHARED = {"attention": "shared"}
#: Of the shared ones, on 1, 2 and 4 ranks the channel's heads are: repeated, divided and stored,
#: whole and stored; repeated on all; repeated, whole and stored twice.
SHAPES: dict[str, dict[str, Any]] = {
    "half": {**HALF, "heads": 4},
    "half, shared": {**HALF, **SHARED, "heads": 4},
    "half, shared, all heads": {**HALF, **SHARED, "heads": 8},
    "shared": {**SHARED, "heads": 2},
    "probe": {"first_layer": 2},
}
RANKS = (1, 2, 4)


def shaped(shape: str, family: str, directory: Path) -> Checkpoint:
    """A checkpoint of that shape with random inserted tensors."""
    kind, base = FAMILIES[family]
    return random_checkpoint(directory / "ck", kind, base=base, **SHAPES[shape])
