"""Qwen2 and Qwen2.5: Llama's modules, with biases on the query, key and value projections."""

import dataclasses

from otter_export.families import llama

FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="qwen2",
    model_types=("qwen2",),
    biases={f"self_attn.{name}_proj": True for name in "qkv"},
    windowed=True,
    settings=("layer_types", "max_window_layers"),
    defaults={"use_sliding_window": False},
)
