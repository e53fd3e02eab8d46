"""StarCoder2: LayerNorm, biases, a plain feed-forward layer."""

import dataclasses

from otter_export.families import llama
from otter_export.family import Projection, Space

FAMILY = dataclasses.replace(
    llama.FAMILY,
    name="starcoder2",
    model_types=("starcoder2",),
    layer_norm=True,
    projections=(
        *llama.PROJECTIONS[:4],
        Projection("mlp.c_fc", Space.HIDDEN, Space.INNER, graph_path="mlp.up_proj"),
        Projection("mlp.c_proj", Space.INNER, Space.HIDDEN, graph_path="mlp.down_proj"),
    ),
    activations=("mlp.act",),
    biases={
        **{f"self_attn.{name}_proj": "use_bias" for name in "qkvo"},
        **{f"mlp.{name}": "use_bias" for name in ("c_fc", "c_proj")},
        **dict.fromkeys((*llama.FAMILY.norms, llama.FAMILY.final_norm), True),
    },
    windowed=True,
    tied=True,
    defaults={"use_bias": True},
)
