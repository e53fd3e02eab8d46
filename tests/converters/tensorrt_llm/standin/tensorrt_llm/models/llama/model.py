"""Llama's decoder layer."""

from __future__ import annotations

from typing import Any

from tensorrt_llm.layers import Attention, AttentionMaskType, GatedMLP, RmsNorm
from tensorrt_llm.module import Module


class LLaMADecoderLayer(Module):
    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        parallel = {"tp_group": config.mapping.tp_group, "tp_size": config.mapping.tp_size}
        self.input_layernorm = RmsNorm(config.hidden_size, config.norm_epsilon, config.dtype)
        self.attention = Attention(
            local_layer_idx=layer_idx,
            hidden_size=config.hidden_size,
            attention_head_size=config.head_size,
            num_attention_heads=config.num_attention_heads,
            num_kv_heads=config.num_key_value_heads,
            max_position_embeddings=config.max_position_embeddings,
            dtype=config.dtype,
            attention_mask_type=AttentionMaskType.causal,
            bias=config.attn_bias,
            position_embedding_type="rope_gpt_neox",
            rotary_embedding_base=config.rotary_base,
            rotary_embedding_scaling=config.rotary_scaling,
            tp_rank=config.mapping.tp_rank,
            **parallel,
        )
        self.mlp = GatedMLP(
            config.hidden_size,
            config.intermediate_size,
            config.hidden_act,
            config.mlp_bias,
            config.dtype,
            **parallel,
        )
        self.post_layernorm = RmsNorm(config.hidden_size, config.norm_epsilon, config.dtype)

    def forward(
        self,
        hidden_states: Any,
        attention_mask: Any = None,
        use_cache: bool = False,
        spec_decoding_params: Any = None,
        kv_cache_params: Any = None,
        attention_params: Any = None,
    ) -> Any:
        attended = self.attention(
            self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            use_cache=use_cache,
            spec_decoding_params=spec_decoding_params,
            kv_cache_params=kv_cache_params,
            attention_params=attention_params,
        )
        attended, presents = attended if use_cache else (attended, None)
        state = hidden_states + attended
        state = state + self.mlp(self.post_layernorm(state))
        return (state, presents) if use_cache else state
