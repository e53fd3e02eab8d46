"""GPT-NeoX (Pythia): parallel residual, fused QKV head by head, biases, partial rotation."""

from otter_export.family import Family, Projection, Space

_QKV = "attention.query_key_value"

FAMILY = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    embeddings=(("gpt_neox.embed_in", "vocab_size"),),
    layers="gpt_neox.layers",
    norms=("input_layernorm", "post_attention_layernorm"),
    final_norm="gpt_neox.final_layer_norm",
    output_head="embed_out",
    projections=(
        Projection(_QKV, Space.HIDDEN, Space.QUERY, "q", "attention.q_proj", by_head=True),
        Projection(_QKV, Space.HIDDEN, Space.KEY, "k", "attention.k_proj", by_head=True),
        Projection(_QKV, Space.HIDDEN, Space.VALUE, "v", "attention.v_proj", by_head=True),
        Projection("attention.dense", Space.QUERY, Space.HIDDEN, graph_path="attention.o_proj"),
        Projection("mlp.dense_h_to_4h", Space.HIDDEN, Space.INNER, graph_path="mlp.up_proj"),
        Projection("mlp.dense_4h_to_h", Space.INNER, Space.HIDDEN, graph_path="mlp.down_proj"),
    ),
    layer_norm=True,
    activations=("mlp.act",),
    partial_rotation=True,
    biases={
        **dict.fromkeys((_QKV, "attention.dense"), "attention_bias"),
        **dict.fromkeys(("mlp.dense_h_to_4h", "mlp.dense_4h_to_h"), True),
        **dict.fromkeys(("input_layernorm", "post_attention_layernorm"), True),
        "gpt_neox.final_layer_norm": True,
    },
    settings=("rotary_pct", "rotary_emb_base"),
    defaults={"attention_bias": True},
    refused=(("use_parallel_residual", True, "the base graph has the parallel form only"),),
)
