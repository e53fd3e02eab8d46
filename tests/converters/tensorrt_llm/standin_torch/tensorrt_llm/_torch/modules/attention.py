"""Attention: asks ``qkv_proj`` for ``[q, k, v]``, and hands its context to ``o_proj``."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from tensorrt_llm._torch.attention_backend.interface import (
    AttentionMetadata,
    PositionalEmbeddingParams,
    PositionEmbeddingType,
)
from tensorrt_llm._torch.modules.linear import Linear, TensorParallelMode


class Attention(nn.Module):
    def __init__(
        self,
        *,
        hidden_size: int,
        num_attention_heads: int,
        num_key_value_heads: int,
        max_position_embeddings: int,
        bias: bool,
        pos_embd_params: PositionalEmbeddingParams,
        layer_idx: int,
        dtype: torch.dtype,
        config: Any,
        dense_bias: bool | None = None,
    ) -> None:
        super().__init__()
        tp = config.mapping.tp_size
        assert num_attention_heads % tp == 0
        self.head_dim = config.pretrained_config.head_dim
        self.num_heads = num_attention_heads // tp
        self.num_key_value_heads = (num_key_value_heads + tp - 1) // tp
        self.q_size = self.num_heads * self.head_dim
        self.kv_size = self.num_key_value_heads * self.head_dim
        assert pos_embd_params.type is PositionEmbeddingType.rope_gpt_neox
        self.rope = pos_embd_params.rope
        rows = tp * (self.q_size + 2 * self.kv_size)
        parallel: dict[str, Any] = {"dtype": dtype, "mapping": config.mapping}
        column, row = TensorParallelMode.COLUMN, TensorParallelMode.ROW
        self.qkv_proj = Linear(
            hidden_size, rows, bias=bias, tensor_parallel_mode=column, **parallel
        )
        self.o_proj = Linear(
            tp * self.q_size,
            hidden_size,
            bias=bias if dense_bias is None else dense_bias,
            tensor_parallel_mode=row,
            **parallel,
        )

    def create_weights(self) -> None:
        self.o_proj.create_weights()

    def forward(
        self,
        position_ids: torch.Tensor | None,
        hidden_states: Any,
        attn_metadata: AttentionMetadata,
        all_reduce_params: Any = None,
        lora_params: dict[str, Any] | None = None,
    ) -> Any:
        qkv = self.qkv_proj(hidden_states)
        assert qkv.shape[-1] == self.q_size + 2 * self.kv_size
        q, k, v = qkv.split([self.q_size, self.kv_size, self.kv_size], dim=-1)
        contexts = []
        assert position_ids is not None
        start = 0
        for length in attn_metadata.seq_lens_cuda.tolist():
            part = slice(start, start + length)
            start += length
            contexts.append(self._attend(q[part], k[part], v[part], position_ids[0, part]))
        context = torch.cat(contexts)
        return self.o_proj(
            context, all_reduce_params=all_reduce_params, lora_params=lora_params, layer_idx=0
        )

    def _attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, positions: torch.Tensor
    ) -> torch.Tensor:
        q, k, v = (x.reshape(len(x), -1, self.head_dim).float() for x in (q, k, v))
        angles = positions[:, None, None].float() * self.rope.frequencies()
        q, k = (_rotate(x, angles.cos(), angles.sin()) for x in (q, k))
        group = self.num_heads // self.num_key_value_heads
        k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
        scores = torch.einsum("qhe,khe->hqk", q, k) / math.sqrt(self.head_dim)
        scores = scores.masked_fill(torch.ones(len(q), len(q)).triu(1).bool(), float("-inf"))
        context = torch.einsum("hqk,khe->qhe", scores.softmax(-1), v)
        return context.reshape(len(q), -1).to(self.o_proj.weight.dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
