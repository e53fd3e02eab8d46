"""Seed-OSS: Llama's modules, biases on the query, key and value projections."""

import dataclasses

from otter_export.families import llama

FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="seed_oss",
    model_types=("seed_oss",),
    biases={
        **{f"self_attn.{name}_proj": "attention_bias" for name in "qkv"},
        "self_attn.o_proj": "attention_out_bias",
        **{f"mlp.{name}_proj": "mlp_bias" for name in ("gate", "up", "down")},
    },
    defaults={"attention_bias": True},
)
