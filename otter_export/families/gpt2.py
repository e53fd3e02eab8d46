"""GPT-2: LayerNorm with biases, Conv1D weights stored [in, out], fused QKV, learned positions."""

from otter_export.family import Family, Projection, Rotation, Space

FAMILY = Family(
    name="gpt2",
    model_types=("gpt2",),
    embeddings=(
        ("transformer.wte", "vocab_size"),
        ("transformer.wpe", "n_positions"),
    ),
    layers="transformer.h",
    norms=("ln_1", "ln_2"),
    final_norm="transformer.ln_f",
    output_head="lm_head",
    projections=(
        Projection("attn.c_attn", Space.HIDDEN, Space.QUERY, "q", "attn.q_proj"),
        Projection("attn.c_attn", Space.HIDDEN, Space.KEY, "k", "attn.k_proj"),
        Projection("attn.c_attn", Space.HIDDEN, Space.VALUE, "v", "attn.v_proj"),
        Projection("attn.c_proj", Space.QUERY, Space.HIDDEN, None, "attn.o_proj"),
        Projection("mlp.c_fc", Space.HIDDEN, Space.INNER, None, "mlp.up_proj"),
        Projection("mlp.c_proj", Space.INNER, Space.HIDDEN, None, "mlp.down_proj"),
    ),
    transposed=True,
    layer_norm=True,
    rotation=Rotation.NONE,
    config_keys={
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    },
    resized=(("attn", "split_size", Space.QUERY),),
    activations=("mlp.act",),
    optional_prefix="transformer.",
    tied=True,
    biases=dict.fromkeys(
        (
            *("ln_1", "ln_2", "transformer.ln_f"),
            *("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
        ),
        True,
    ),
    refused=(
        ("scale_attn_by_inverse_layer_idx", False, "the base graph has no such scale"),
        ("scale_attn_weights", True, "the base graph always scales by 1/sqrt(head size)"),
        ("add_cross_attention", False, "only decoders without an encoder are widened"),
    ),
)
