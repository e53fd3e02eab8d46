"""Llama and what shares its modules: RMSNorm, rotary embedding, gated FFN; biases are optional."""

from otter_export.family import Family, Projection, Space

PROJECTIONS = (
    Projection("self_attn.q_proj", Space.HIDDEN, Space.QUERY),
    Projection("self_attn.k_proj", Space.HIDDEN, Space.KEY),
    Projection("self_attn.v_proj", Space.HIDDEN, Space.VALUE),
    Projection("self_attn.o_proj", Space.QUERY, Space.HIDDEN),
    Projection("mlp.gate_proj", Space.HIDDEN, Space.INNER),
    Projection("mlp.up_proj", Space.HIDDEN, Space.INNER),
    Projection("mlp.down_proj", Space.INNER, Space.HIDDEN),
)

FAMILY = Family(
    name="llama",
    model_types=("llama",),
    embeddings=(("model.embed_tokens", "vocab_size"),),
    layers="model.layers",
    norms=("input_layernorm", "post_attention_layernorm"),
    final_norm="model.norm",
    output_head="lm_head",
    projections=PROJECTIONS,
    activations=("mlp.act_fn",),
    optional_prefix="model.",
    biases={
        **dict.fromkeys((f"self_attn.{name}_proj" for name in "qkvo"), "attention_bias"),
        **dict.fromkeys((f"mlp.{name}_proj" for name in ("gate", "up", "down")), "mlp_bias"),
    },
)
