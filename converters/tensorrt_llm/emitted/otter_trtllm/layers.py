"""The layers of an Otter model for TensorRT-LLM's PyTorch backend, of one stream and of two.

The state of a layer with a channel is a pair ``(x, x')``, each ``[tokens, width]``. Base values
come from base values only, and no zero block is multiplied. Under tensor parallelism the base is
divided among the ranks, while every rank holds the whole channel, which is small; its part is added
after the all-reduce.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from tensorrt_llm._torch.modules.gated_mlp import GatedMLP
from tensorrt_llm._torch.modules.linear import Linear, TensorParallelMode
from tensorrt_llm._torch.modules.rms_norm import RMSNorm
from torch import Tensor, nn
from torch.nn import functional


def _first(*names: str) -> Any:
    """The first of these modules that exists: some have moved between releases."""
    for name in names[:-1]:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if not name.startswith(error.name or "?"):
                raise
    return importlib.import_module(names[-1])


_TORCH = "tensorrt_llm._torch"
Attention: Any = _first(f"{_TORCH}.attention.attention", f"{_TORCH}.modules.attention").Attention
_ROTARY = _first(f"{_TORCH}.attention.backends.interface", f"{_TORCH}.attention_backend.interface")

State = tuple[Tensor, Tensor]


class WidenedNorm(nn.Module):
    """RMS norm of both streams by the base's statistics; float32 inside."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.weight = parameter(config, config.hidden_size)
        self.channel_weight = parameter(config, config.otter["hidden_size"])
        self.epsilon = float(config.rms_norm_eps)

    def forward(self, state: State) -> State:
        base, channel = state
        wide = base.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        normed = (wide * scale).to(base.dtype) * self.weight
        return normed, (channel.float() * scale).to(channel.dtype) * self.channel_weight


class WidenedColumns(Linear):
    """Projections that read ``(x, x')``; gives ``[y1, y1', y2, y2', ..]``, the rank's own rows.

    ``weight`` is ``[W1; W2; ..; A1; A2; ..]``, ``channel`` holds ``[B1; B2; ..]``.
    """

    def __init__(self, config: Any, bases: list[int], extras: list[int], *, bias: bool) -> None:
        rows = sum(bases) + sum(extras)
        super().__init__(config.hidden_size, rows, bias=bias, dtype=config.torch_dtype)
        self.bases, self.extras = bases, extras
        self.channel = parameter(config, sum(extras), config.otter["hidden_size"])

    def parts(self, state: State) -> tuple[list[Tensor], list[Tensor]]:
        """``[y1, y2, ..]`` and ``[y1', y2', ..]``."""
        base, channel = state
        joined = super().forward(base)
        y, extra = torch.split(joined, [sum(self.bases), sum(self.extras)], -1)
        extra = extra + functional.linear(channel, self.channel)
        return list(torch.split(y, self.bases, -1)), list(torch.split(extra, self.extras, -1))

    def forward(self, state: Any, **_: Any) -> Tensor:
        return torch.cat([p for pair in zip(*self.parts(state), strict=True) for p in pair], -1)


class SharedQueryKeyValue(WidenedColumns):
    """Gives ``[q, q', k, k', v, v']``, where q' and k' are those of the base's first heads again.

    The attention gives no weights away, so a channel that shares them computes them twice. A single
    rank repeats q and k. Of several some lack these heads, so each computes them, from copies of
    their rows that are made at loading: ``weight`` is ``[Wq; Wk; Wv; Wq'; Wk'; Av]``.
    """

    def __init__(
        self, config: Any, bases: list[int], extras: list[int], *, bias: bool, ranks: int
    ) -> None:
        again = extras[:2]
        super().__init__(config, bases + (again if ranks > 1 else []), extras[2:], bias=bias)
        self.again = again

    def forward(self, state: Any, **_: Any) -> Tensor:
        (q, k, v, *copies), (value,) = self.parts(state)
        query, key = copies or (q[..., : self.again[0]], k[..., : self.again[1]])
        return torch.cat([q, query, k, key, v, value], -1)


class WidenedRows(Linear):
    """A projection that reads ``[x, x']`` joined, the rank's columns of x; gives the pair."""

    def __init__(self, model_config: Any, reads: tuple[int, int], *, bias: bool) -> None:
        config, mapping = model_config.pretrained_config, model_config.mapping
        writes = [config.hidden_size, config.otter["hidden_size"]]
        super().__init__(
            reads[0],
            sum(writes),
            bias=bias,
            dtype=config.torch_dtype,
            mapping=mapping,
            tensor_parallel_mode=TensorParallelMode.ROW,
        )
        self.writes, self.reads = writes, [reads[0] // mapping.tp_size, reads[1]]
        self.channel = parameter(config, writes[1], reads[1])

    def forward(self, joined: Tensor, **arguments: Any) -> Any:
        base, channel = torch.split(joined, self.reads, -1)
        y, extra = torch.split(super().forward(base.contiguous(), **arguments), self.writes, -1)
        return y, extra + functional.linear(channel, self.channel)


class BaseAttention(Attention):
    """The base's attention, with as many heads as it is told."""

    def __init__(self, model_config: Any, layer_idx: int, heads: tuple[int, int]) -> None:
        config = model_config.pretrained_config
        rotary = _ROTARY.PositionalEmbeddingParams(
            type=_ROTARY.PositionEmbeddingType.rope_gpt_neox,
            rope=_ROTARY.RopeParams.from_config(config),
        )
        super().__init__(
            hidden_size=config.hidden_size,
            num_attention_heads=heads[0],
            num_key_value_heads=heads[1],
            max_position_embeddings=config.max_position_embeddings,
            bias=config.otter["qkv_bias"],
            dense_bias=config.otter["dense_bias"],
            pos_embd_params=rotary,
            layer_idx=layer_idx,
            dtype=config.torch_dtype,
            config=model_config,
        )


class OtterAttention(BaseAttention):
    """One attention over base and extra heads, base heads first on every rank."""

    def __init__(self, model_config: Any, layer_idx: int) -> None:
        config, tp = model_config.pretrained_config, model_config.mapping.tp_size
        otter, e = config.otter, config.head_dim
        super().__init__(model_config, layer_idx, heads_with_channel(otter, tp))
        query = (otter["base_attention_heads"] * e, otter["num_attention_heads"] * e)
        key_value = (otter["base_key_value_heads"] * e, otter["num_key_value_heads"] * e)
        parts, bias = (query, key_value, key_value), otter["qkv_bias"]
        bases, extras = [base // tp for base, _ in parts], [extra for _, extra in parts]
        self.qkv_proj = (
            SharedQueryKeyValue(config, bases, extras, bias=bias, ranks=tp)
            if otter["attention"] == "shared"
            else WidenedColumns(config, bases, extras, bias=bias)
        )
        self.o_proj = WidenedRows(model_config, query, bias=otter["dense_bias"])


class OtterMLP(nn.Module):
    """The gated feed-forward layer, with the channel's own neurons."""

    def __init__(self, model_config: Any) -> None:
        super().__init__()
        config, tp = model_config.pretrained_config, model_config.mapping.tp_size
        inner = (config.intermediate_size, config.otter["intermediate_size"])
        bases, extras, bias = [inner[0] // tp] * 2, [inner[1]] * 2, config.otter["mlp_bias"]
        self.gate_up_proj = WidenedColumns(config, bases, extras, bias=bias)
        self.down_proj = WidenedRows(model_config, inner, bias=bias)

    def forward(self, state: State) -> State:
        gate, up = self.gate_up_proj(state).chunk(2, dim=-1)
        return self.down_proj(functional.silu(gate) * up)


class BaseDecoderLayer(nn.Module):
    """One decoder layer on x alone, of TensorRT-LLM's own modules."""

    def __init__(self, model_config: Any, layer_idx: int) -> None:
        super().__init__()
        config = model_config.pretrained_config
        otter, dtype = config.otter, config.torch_dtype
        norm = {"hidden_size": config.hidden_size, "eps": config.rms_norm_eps, "dtype": dtype}
        heads = (otter["base_attention_heads"], otter["base_key_value_heads"])
        self.input_layernorm = RMSNorm(**norm)
        self.self_attn = BaseAttention(model_config, layer_idx, heads)
        self.post_attention_layernorm = RMSNorm(**norm)
        self.mlp = GatedMLP(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            bias=otter["mlp_bias"],
            dtype=dtype,
            config=model_config,
        )

    def forward(self, position_ids: Any, x: Tensor, attn_metadata: Any) -> Tensor:
        attended = self.self_attn(
            position_ids=position_ids,
            hidden_states=self.input_layernorm(x),
            attn_metadata=attn_metadata,
        )
        x = x + attended
        fed: Tensor = self.mlp(self.post_attention_layernorm(x))
        return x + fed


class OtterDecoderLayer(nn.Module):
    """One decoder layer on the pair of streams."""

    def __init__(self, model_config: Any, layer_idx: int) -> None:
        super().__init__()
        config = model_config.pretrained_config
        self.input_layernorm = WidenedNorm(config)
        self.self_attn = OtterAttention(model_config, layer_idx)
        self.post_attention_layernorm = WidenedNorm(config)
        self.mlp = OtterMLP(model_config)

    def forward(self, position_ids: Any, state: State, attn_metadata: Any) -> State:
        attended = self.self_attn(
            position_ids=position_ids,
            hidden_states=self.input_layernorm(state),
            attn_metadata=attn_metadata,
        )
        state = (state[0] + attended[0], state[1] + attended[1])
        fed = self.mlp(self.post_attention_layernorm(state))
        return state[0] + fed[0], state[1] + fed[1]


def heads_with_channel(otter: dict[str, Any], ranks: int) -> tuple[int, int]:
    """Query and key/value heads of a layer with a channel, which every rank holds whole."""
    query, key_value = (
        otter[f"base_{kind}"] + ranks * otter[f"num_{kind}"]
        for kind in ("attention_heads", "key_value_heads")
    )
    return query, key_value


def parameter(config: Any, *shape: int) -> nn.Parameter:
    """Memory for a weight; `torch.empty`, so that TensorRT-LLM can put off its allocation."""
    return nn.Parameter(torch.empty(shape, dtype=config.torch_dtype), requires_grad=False)
