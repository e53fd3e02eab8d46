"""Linear layers, embeddings, and attention over packed sequences with a cache and a tree mask."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Mapping
from typing import Any

import torch

from tensorrt_llm._common import default_net
from tensorrt_llm.functional import Tensor, allgather, allreduce, cast, silu
from tensorrt_llm.module import Module
from tensorrt_llm.parameter import Parameter


class AttentionMaskType(enum.IntEnum):
    padding = 0
    causal = 1


class Linear(Module):
    """``x W^T + b``, the rank's rows."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        dtype: str | None = None,
        tp_group: list[int] | None = None,
        tp_size: int = 1,
        gather_output: bool = True,
    ) -> None:
        super().__init__()
        self.weight = Parameter(shape=(out_features // tp_size, in_features), dtype=dtype)
        if bias:
            self.bias = Parameter(shape=(out_features // tp_size,), dtype=dtype)
        else:
            self.register_parameter("bias", None)
        self.gathered = tp_group if gather_output and tp_size > 1 else None

    def forward(self, x: Tensor, lora_runtime_params: Any = None, **kwargs: Any) -> Tensor:
        weight = self.weight.value
        assert x.dtype == weight.dtype
        y = Tensor(x.data @ weight.data.T)
        if self.bias is not None:
            y = y + self.bias.value
        return y if self.gathered is None else allgather(y, self.gathered, gather_dim=-1)


ColumnLinear = Linear


class RowLinear(Module):
    """The rank's columns; the sum of all ranks, and the bias once."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        dtype: str | None = None,
        tp_group: list[int] | None = None,
        tp_size: int = 1,
    ) -> None:
        super().__init__()
        self.weight = Parameter(shape=(out_features, in_features // tp_size), dtype=dtype)
        self.register_parameter(
            "bias", Parameter(shape=(out_features,), dtype=dtype) if bias else None
        )
        self.group = tp_group if tp_size > 1 else None

    def forward(
        self, x: Tensor, lora_runtime_params: Any = None, all_reduce_params: Any = None
    ) -> Tensor:
        y = Tensor(x.data @ self.weight.value.data.T)
        y = y if self.group is None else allreduce(y, self.group)
        return y if self.bias is None else y + self.bias.value


class RmsNorm(Module):
    def __init__(self, normalized_shape: int, eps: float, dtype: str) -> None:
        super().__init__()
        self.weight = Parameter(shape=(normalized_shape,), dtype=dtype)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = cast(x, "float32")
        root = ((wide * wide).mean(dim=-1, keepdim=True) + self.eps).sqrt()
        return cast(wide / root, x.dtype) * self.weight.value


class GatedMLP(Module):
    """``proj(silu(fc x) * gate x)``."""

    def __init__(
        self,
        hidden_size: int,
        ffn_hidden_size: int,
        hidden_act: str,
        bias: bool,
        dtype: str,
        tp_group: list[int],
        tp_size: int,
    ) -> None:
        super().__init__()
        assert hidden_act == "silu"
        parallel: dict[str, Any] = {"tp_group": tp_group, "tp_size": tp_size}
        column = {"bias": bias, "dtype": dtype, "gather_output": False, **parallel}
        self.fc = ColumnLinear(hidden_size, ffn_hidden_size, **column)
        self.gate = ColumnLinear(hidden_size, ffn_hidden_size, **column)
        self.proj = RowLinear(ffn_hidden_size, hidden_size, bias, dtype, **parallel)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(silu(self.fc(x)) * self.gate(x))  # type: ignore[no-any-return]


class Embedding(Module):
    def __init__(self, num_embeddings: int, embedding_dim: int, dtype: str | None = None) -> None:
        super().__init__()
        self.weight = Parameter(shape=(num_embeddings, embedding_dim), dtype=dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return Tensor(self.weight.value.data[ids.data.long()])


@dataclasses.dataclass
class KeyValueCacheParams:
    """``rows``: by layer and sequence, keys and values ``[tokens, heads, e]``; steps add rows."""

    rows: list[list[tuple[torch.Tensor, torch.Tensor]]]
    host_past_key_value_lengths: list[int]


@dataclasses.dataclass
class AttentionParams:
    """Tokens of each sequence in this step, and whether it is in its generation phase."""

    host_context_lengths: list[int]
    host_request_types: list[int]
    rotary_inv_freq: torch.Tensor | None = None


@dataclasses.dataclass
class SpecDecodingParams:
    spec_decoding_generation_lengths: torch.Tensor
    spec_decoding_position_offsets: torch.Tensor
    spec_decoding_packed_mask: torch.Tensor


class Attention(Module):
    """Asks ``qkv`` for ``[q, k, v]``, and hands its context to ``dense``."""

    def __init__(
        self,
        *,
        local_layer_idx: int,
        hidden_size: int,
        num_attention_heads: int,
        num_kv_heads: int,
        max_position_embeddings: int,
        attention_head_size: int,
        attention_mask_type: AttentionMaskType,
        bias: bool,
        dtype: str,
        position_embedding_type: Any,
        rotary_embedding_base: float,
        rotary_embedding_scaling: Mapping[str, Any] | None,
        tp_group: list[int],
        tp_size: int,
        tp_rank: int,
        enable_qkv: bool = True,
    ) -> None:
        super().__init__()
        assert attention_mask_type is AttentionMaskType.causal
        assert str(position_embedding_type) == "rope_gpt_neox"
        assert num_attention_heads % tp_size == 0 and num_kv_heads % tp_size == 0
        self.layer = local_layer_idx
        self.heads, self.kv_heads = num_attention_heads // tp_size, num_kv_heads // tp_size
        assert self.heads % self.kv_heads == 0
        self.size = attention_head_size
        parallel: dict[str, Any] = {"tp_group": tp_group, "tp_size": tp_size}
        if enable_qkv:
            rows = tp_size * (self.heads + 2 * self.kv_heads) * self.size
            self.qkv = ColumnLinear(hidden_size, rows, bias, dtype, gather_output=False, **parallel)
        self.dense = RowLinear(
            tp_size * self.heads * self.size, hidden_size, bias, dtype, **parallel
        )

    @staticmethod
    def create_attention_const_params(model: Any, config: Any) -> None:
        model.rotary_inv_freq = inverse_frequencies(
            config.head_size, config.rotary_base, config.rotary_scaling
        )

    @staticmethod
    def fill_attention_params(model: Any, attention_params: AttentionParams) -> AttentionParams:
        return dataclasses.replace(attention_params, rotary_inv_freq=model.rotary_inv_freq)

    def forward(
        self,
        hidden_states: Any,
        attention_mask: Any = None,
        use_cache: bool = False,
        spec_decoding_params: SpecDecodingParams | None = None,
        kv_cache_params: KeyValueCacheParams | None = None,
        attention_params: AttentionParams | None = None,
    ) -> Any:
        assert isinstance(hidden_states, (Tensor, tuple))
        assert default_net().plugin_config.gpt_attention_plugin
        assert kv_cache_params is not None and attention_params is not None
        qkv = self.qkv(hidden_states, None)
        assert qkv.ndim() == 2
        rows = qkv.data.view(qkv.shape[0], -1, self.size)
        q, k, v = rows.split([self.heads, self.kv_heads, self.kv_heads], dim=1)
        contexts, start = [], 0
        for i, step in enumerate(attention_params.host_context_lengths):
            part = slice(start, start + step)
            start += step
            past = kv_cache_params.host_past_key_value_lengths[i]
            positions, visible = _tree(i, step, past, attention_params, spec_decoding_params)
            cache = kv_cache_params.rows[self.layer]
            contexts.append(
                self._attend(
                    q[part],
                    k[part],
                    v[part],
                    positions,
                    visible,
                    past,
                    cache,
                    i,
                    attention_params.rotary_inv_freq,
                )
            )
        context = Tensor(torch.cat(contexts).reshape(qkv.shape[0], -1))
        out = self.dense(context, lora_runtime_params=None, all_reduce_params=None)
        return (out, None) if use_cache else out

    def _attend(self, q, k, v, positions, visible, past, cache, i, frequencies):  # type: ignore[no-untyped-def]
        q, k = _rotate(q, positions, frequencies), _rotate(k, positions, frequencies)
        keys, values = (
            torch.cat([old[:past], new]) for old, new in zip(cache[i], (k, v), strict=True)
        )
        cache[i] = (keys, values)
        group = self.heads // self.kv_heads
        keys, values = (x.repeat_interleave(group, dim=1).float() for x in (keys, values))
        scores = torch.einsum("qhe,khe->hqk", q.float(), keys) / math.sqrt(self.size)
        scores = scores.masked_fill(~visible, float("-inf"))
        return torch.einsum("hqk,khe->qhe", scores.softmax(-1), values).to(q.dtype)


def _tree(i, step, past, params, spec):  # type: ignore[no-untyped-def]
    """Positions ``[step]`` and what each row sees, ``[step, past + step]``."""
    own = torch.ones(step, step).tril().bool()
    positions = past + torch.arange(step)
    if spec is not None and params.host_request_types[i] == 1:
        assert int(spec.spec_decoding_generation_lengths[i]) == step
        positions = past + spec.spec_decoding_position_offsets[i]
        words = spec.spec_decoding_packed_mask[i * step : (i + 1) * step]
        column = torch.arange(step)
        own = ((words[:, column // 32] >> (column % 32)) & 1).bool()
    return positions, torch.cat([torch.ones(step, past).bool(), own], dim=1)


def _rotate(x: torch.Tensor, positions: torch.Tensor, frequencies: torch.Tensor) -> torch.Tensor:
    angles = positions[:, None, None].float() * frequencies
    cos, sin = angles.cos(), angles.sin()
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1).to(x.dtype)


def inverse_frequencies(size: int, base: float, scaling: Mapping[str, Any] | None) -> torch.Tensor:
    """Of rotary embeddings, ``[size / 2]``; scalings ``linear`` and ``llama3`` as published."""
    frequencies = base ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
    if scaling is not None and scaling["type"] == "linear":
        frequencies = frequencies / scaling["factor"]
    elif scaling is not None:
        assert scaling["type"] == "llama3"
        low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
        original = scaling["original_max_position_embeddings"]
        turns = original * frequencies / (2 * math.pi)
        smooth = ((turns - low) / (high - low)).clamp(0, 1)
        frequencies = (1 - smooth) * frequencies / scaling["factor"] + smooth * frequencies
    return frequencies.float()
