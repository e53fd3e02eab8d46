"""Llama, Mistral or Qwen2 with an Otter channel, in TensorRT-LLM's model definition API (1.0-1.2).

Written by otter-export beside a TensorRT-LLM checkpoint. Importing this file registers the model:

    trtllm-build --model_cls_file otter_engine_model.py --model_cls_name OtterForCausalLM ...

The state is a pair ``(x, x')``, each ``[tokens, width]`` (padding removed). Base values come from
base values only. No zero block is multiplied: ``weight`` is ``[W; A]`` and reads x once,
``channel.weight`` is B. Base and channel heads share one attention layer and one KV cache, base
heads first on every rank. Layers below the channel's first one are TensorRT-LLM's own Llama layers,
and the state there is x.
"""

from __future__ import annotations

from typing import Any

from tensorrt_llm import functional as f
from tensorrt_llm._common import default_net
from tensorrt_llm.functional import Tensor
from tensorrt_llm.layers import Attention, AttentionMaskType, ColumnLinear, Embedding, RowLinear
from tensorrt_llm.models import MODEL_MAP
from tensorrt_llm.models.llama.config import LLaMAConfig
from tensorrt_llm.models.llama.model import LLaMADecoderLayer
from tensorrt_llm.models.modeling_utils import DecoderLayerList, DecoderModelForCausalLM
from tensorrt_llm.module import Module, ModuleList
from tensorrt_llm.parameter import Parameter

State = tuple[Tensor, Tensor]
Width = tuple[int, int]  # (base, channel)
ACTIVATIONS = {"identity": lambda z: z, "tanh": f.tanh, "sigmoid": f.sigmoid}


class OtterEngineConfig(LLaMAConfig):
    """Llama's configuration, with the channel's shape and signals in ``otter``.

    ``num_kv_heads_per_layer`` counts base and channel heads of all ranks. TensorRT-LLM's runtime
    sizes the KV cache of each layer by the field of this name (cpp/tensorrt_llm/runtime/
    gptJsonConfig.cpp), as for its Nemotron-NAS (tensorrt_llm/models/nemotron_nas/config.py, 1.0).
    """

    def __init__(
        self, *, otter: dict[str, Any], num_kv_heads_per_layer: list[int], **kwargs: Any
    ) -> None:
        self.otter, self.num_kv_heads_per_layer = otter, num_kv_heads_per_layer
        super().__init__(**kwargs)


class Widths:
    """What one rank holds of each width, of the base and of the channel."""

    def __init__(self, config: OtterEngineConfig) -> None:
        otter, tp, e = config.otter, config.mapping.tp_size, config.head_size
        heads_tp = tp if otter["heads_divided"] else 1
        inner_tp = tp if otter["inner_divided"] else 1
        self.hidden = (config.hidden_size, otter["hidden_size"])
        self.inner = (config.intermediate_size // tp, otter["intermediate_size"] // inner_tp)
        self.query, self.key_value = (
            (getattr(config, name) * e // tp, otter[name] * e // heads_tp)
            for name in ("num_attention_heads", "num_key_value_heads")
        )


class WidenedNorm(Module):
    """RMS norm of both streams by the base's statistics; float32 inside."""

    def __init__(self, config: OtterEngineConfig) -> None:
        super().__init__()
        self.weight = Parameter(shape=(config.hidden_size,), dtype=config.dtype)
        shape = (config.otter["hidden_size"],)
        self.channel_weight = Parameter(shape=shape, dtype=config.dtype)
        self.epsilon = config.norm_epsilon

    def forward(self, state: State) -> State:
        base, channel = state
        wide = f.cast(base, "float32")
        root = (f.pow(wide, 2.0).mean(dim=-1, keepdim=True) + self.epsilon).sqrt()
        normed = f.cast(wide / root, base.dtype) * self.weight.value
        extra = f.cast(f.cast(channel, "float32") / root, channel.dtype) * self.channel_weight.value
        return normed, extra


class ColumnProjection(ColumnLinear):
    """``(x, x')`` to this rank's rows of ``W x + b`` and ``A x + B x' + b'``."""

    def __init__(self, reads: Width, writes: Width, dtype: str, *, bias: bool) -> None:
        super().__init__(reads[0], sum(writes), bias=bias, dtype=dtype)
        self.channel = ColumnLinear(reads[1], writes[1], bias=False, dtype=dtype)
        self.writes = writes

    def forward(self, state: State, *_: Any, **__: Any) -> State:
        base, channel = state
        y, extra = f.split(super().forward(base), list(self.writes), dim=base.ndim() - 1)
        return y, extra + self.channel(channel)


class RowProjection(ColumnLinear):
    """This rank's columns of W, A and B; one all-reduce completes both streams.

    A channel that every rank holds whole (``divided`` False) adds ``B x'`` after it.
    """

    def __init__(
        self,
        reads: Width,
        writes: Width,
        config: OtterEngineConfig,
        *,
        divided: bool,
        bias: bool,
    ) -> None:
        super().__init__(reads[0], sum(writes), bias=False, dtype=config.dtype)
        self.channel = ColumnLinear(reads[1], writes[1], bias=False, dtype=config.dtype)
        if bias:
            self.output_bias = Parameter(shape=(sum(writes),), dtype=config.dtype)
        self.reads, self.writes = reads, writes
        self.group = config.mapping.tp_group if config.mapping.tp_size > 1 else None
        self.divided, self.has_output_bias = divided, bias

    def forward(self, state: Any, *_: Any, **__: Any) -> State:
        base, channel = state
        axis = base.ndim() - 1
        joint = super().forward(base)
        part = self.channel(channel)
        if self.group is not None and self.divided:
            y, extra = f.split(joint, list(self.writes), dim=axis)
            joint = f.concat([y, extra + part], dim=axis)
        if self.group is not None:
            joint = f.allreduce(joint, self.group, all_reduce_params=f.AllReduceParams())
        if self.has_output_bias:
            joint = joint + self.output_bias.value
        y, extra = f.split(joint, list(self.writes), dim=axis)
        return (y, extra) if self.group is not None and self.divided else (y, extra + part)


class QueryKeyValue(ColumnProjection):
    """Gives the attention layer ``[q, q', k, k', v, v']``."""

    def __init__(self, config: OtterEngineConfig, widths: Widths) -> None:
        parts = (widths.query, widths.key_value, widths.key_value)
        self.parts = parts
        writes = (sum(base for base, _ in parts), sum(extra for _, extra in parts))
        super().__init__(widths.hidden, writes, config.dtype, bias=config.attn_bias)

    def forward(self, state: State, *_: Any, **__: Any) -> Tensor:
        axis = state[0].ndim() - 1
        base, channel = super().forward(state)
        bases = f.split(base, [width for width, _ in self.parts], dim=axis)
        extras = f.split(channel, [width for _, width in self.parts], dim=axis)
        joined = [part for pair in zip(bases, extras, strict=True) for part in pair]
        return f.concat(joined, dim=axis)


class SharedQueryKeyValue(ColumnProjection):
    """Gives ``[q, q', k, k', v, v']``, where q' and k' are those of base heads again.

    The attention layer gives no weights away, so a channel that shares them computes them twice.
    A rank that has these base heads repeats them; else their rows are stored in its weight:
    ``[Wq; Wk; Wv; Wq'; Wk'; Av]``.
    """

    def __init__(self, config: OtterEngineConfig, widths: Widths) -> None:
        self.query, self.key = widths.query, widths.key_value
        self.parts = [self.query[0], self.key[0], self.key[0]]
        if config.otter["heads_stored"]:
            self.parts += [self.query[1], self.key[1]]
        writes = (sum(self.parts), self.key[1])
        super().__init__(widths.hidden, writes, config.dtype, bias=config.attn_bias)

    def forward(self, state: State, *_: Any, **__: Any) -> Tensor:
        axis = state[0].ndim() - 1
        base, value = super().forward(state)
        q, k, v, *stored = f.split(base, self.parts, dim=axis)
        again = stored or [_first(q, self.query), _first(k, self.key)]
        return f.concat([q, again[0], k, again[1], v, value], dim=axis)


class AttentionOutput(RowProjection):
    """The output projection, reading ``[base heads, extra heads]`` of the attention layer."""

    def forward(self, state: Any, *_: Any, **__: Any) -> State:
        base, channel = f.split(state, list(self.reads), dim=state.ndim() - 1)
        return super().forward((base, channel))


class OtterMLP(Module):
    """The gated feed-forward layer, with the channel's own neurons."""

    def __init__(self, config: OtterEngineConfig, widths: Widths) -> None:
        super().__init__()
        bias, dtype = config.mlp_bias, config.dtype
        self.fc = ColumnProjection(widths.hidden, widths.inner, dtype, bias=bias)
        self.gate = ColumnProjection(widths.hidden, widths.inner, dtype, bias=bias)
        self.proj = RowProjection(
            widths.inner, widths.hidden, config, divided=config.otter["inner_divided"], bias=bias
        )

    def forward(self, state: State) -> State:
        activated, factor = self.fc(state), self.gate(state)
        return self.proj((f.silu(activated[0]) * factor[0], f.silu(activated[1]) * factor[1]))


class BaseDecoderLayer(LLaMADecoderLayer):
    """TensorRT-LLM's own layer, of one stream.

    It has a bias in all four projections of its attention, or in none; Qwen2 has none in the last.
    """

    def __init__(self, config: OtterEngineConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        if config.attn_bias and not config.otter["dense_bias"]:
            self.attention.dense = RowLinear(
                config.num_attention_heads * config.head_size,
                config.hidden_size,
                bias=False,
                dtype=config.dtype,
                tp_group=config.mapping.tp_group,
                tp_size=config.mapping.tp_size,
            )


class OtterDecoderLayer(Module):
    """One decoder layer on the pair of streams."""

    def __init__(self, config: OtterEngineConfig, layer_idx: int) -> None:
        super().__init__()
        widths, mapping = Widths(config), config.mapping
        self.input_layernorm = WidenedNorm(config)
        self.attention = Attention(
            local_layer_idx=layer_idx - mapping.pp_layers(config.num_hidden_layers)[0],
            hidden_size=config.hidden_size,
            attention_head_size=config.head_size,
            num_attention_heads=sum(widths.query) // config.head_size * mapping.tp_size,
            num_kv_heads=config.num_kv_heads_per_layer[layer_idx],
            max_position_embeddings=config.max_position_embeddings,
            dtype=config.dtype,
            attention_mask_type=AttentionMaskType.causal,
            bias=False,
            position_embedding_type=config.position_embedding_type,
            rotary_embedding_base=config.rotary_base,
            rotary_embedding_scaling=config.rotary_scaling,
            tp_group=mapping.tp_group,
            tp_size=mapping.tp_size,
            tp_rank=mapping.tp_rank,
            enable_qkv=False,
        )
        # The layer asks its `qkv` for [q, k, v] and hands its context to `dense`; what lies between
        # (rotary embedding, tree mask, paged cache) does not know which heads are extra.
        is_shared = config.otter["attention"] == "shared"
        self.attention.qkv = (SharedQueryKeyValue if is_shared else QueryKeyValue)(config, widths)
        divided, bias = config.otter["heads_divided"], config.otter["dense_bias"]
        self.attention.dense = AttentionOutput(
            widths.query, widths.hidden, config, divided=divided, bias=bias
        )
        self.post_layernorm = WidenedNorm(config)
        self.mlp = OtterMLP(config, widths)

    def forward(self, hidden_states: State, use_cache: bool = False, **kwargs: Any) -> Any:
        attended = self.attention(
            self.input_layernorm(hidden_states), use_cache=use_cache, **kwargs
        )
        presents = None
        if use_cache:
            attended, presents = attended
        state = _add(hidden_states, attended)
        state = _add(state, self.mlp(self.post_layernorm(state)))
        return (state, presents) if use_cache else state


class ChannelStart(ColumnLinear):
    """Where the channel begins inside the base: ``x`` to ``(x, P x)``."""

    def __init__(self, config: OtterEngineConfig) -> None:
        super().__init__(
            config.hidden_size, config.otter["hidden_size"], bias=False, dtype=config.dtype
        )

    def forward(self, base: Tensor, *_: Any, **__: Any) -> State:
        return base, super().forward(base)


class FirstDecoderLayer(OtterDecoderLayer):
    """The layer that the channel begins at, where that is not the first of all."""

    def __init__(self, config: OtterEngineConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.channel_start = ChannelStart(config)

    def forward(self, hidden_states: Tensor, use_cache: bool = False, **kwargs: Any) -> Any:
        return super().forward(self.channel_start(hidden_states), use_cache, **kwargs)


def decoder_layer(config: OtterEngineConfig, layer_idx: int) -> Module:
    """The layer of that number: with or without the channel."""
    first = config.otter["first_layer"]
    if layer_idx < first:
        return BaseDecoderLayer(config, layer_idx)
    return (FirstDecoderLayer if 0 < layer_idx == first else OtterDecoderLayer)(config, layer_idx)


class OtterTransformer(Module):
    """Embedding, decoder layers and final norm."""

    def __init__(self, config: OtterEngineConfig) -> None:
        super().__init__()
        otter, channel = config.otter, config.otter["hidden_size"]
        self.vocab_embedding = Embedding(config.vocab_size, config.hidden_size, dtype=config.dtype)
        self.is_table = otter["embedding"] == "table"
        self.is_whole = otter["first_layer"] == 0
        self.is_probe = otter["first_layer"] == config.num_hidden_layers
        if self.is_whole:
            self.channel_embedding = (
                Embedding(config.vocab_size, channel, dtype=config.dtype)
                if self.is_table
                else ColumnLinear(config.hidden_size, channel, bias=False, dtype=config.dtype)
            )
        if self.is_probe:
            self.channel_start = ChannelStart(config)
        self.layers = DecoderLayerList(decoder_layer, config)
        self.ln_f = WidenedNorm(config)

    def forward(self, input_ids: Tensor, use_cache: bool = False, **kwargs: Any) -> Any:
        state = base = self.vocab_embedding(input_ids)
        if self.is_whole:
            state = (base, self.channel_embedding(input_ids if self.is_table else base))
        # `forward`, as TensorRT-LLM's own models call it: a list of layers has no layer of its own.
        output = self.layers.forward(state, use_cache=use_cache, **kwargs)
        state, presents = output if use_cache else (output, ())
        normed = self.ln_f(self.channel_start(state) if self.is_probe else state)
        return (normed, tuple(presents)) if use_cache else normed


class OtterForCausalLM(DecoderModelForCausalLM):
    """Gives ``logits`` and one output per signal, for the rows that ``last_token_ids`` names."""

    config_class = OtterEngineConfig

    def __init__(self, config: OtterEngineConfig) -> None:
        tp, mapping = config.mapping.tp_size, config.mapping
        padded = -(-config.vocab_size // tp) * tp
        group = {"tp_group": mapping.tp_group, "tp_size": tp, "gather_output": True}
        lm_head = ColumnLinear(config.hidden_size, padded, bias=False, dtype=config.dtype, **group)
        self.quant_mode = config.quant_mode
        self.mapping = mapping
        super().__init__(config, OtterTransformer(config), lm_head)
        rows = {"value": 1, "q_value": config.vocab_size, "expert": config.vocab_size}
        channel, dtype = config.otter["hidden_size"], config.dtype
        self.signals = ModuleList(
            ColumnLinear(channel, rows[s["kind"]], dtype=dtype) for s in config.otter["signals"]
        )

    def prepare_attention_inputs(self, **kwargs: Any) -> Any:
        """The cache's inputs: a pool for each number of heads (models/generation_mixin.py, 1.0)."""
        kwargs["num_kv_heads_per_layer"] = self.config.num_kv_heads_per_layer
        return super().prepare_attention_inputs(**kwargs)

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor | None = None,
        use_cache: bool = False,
        last_token_ids: Tensor | None = None,
        attention_params: Any = None,
        **kwargs: Any,
    ) -> Any:
        # Positions are applied by the attention layers, from sequence lengths and tree offsets.
        del position_ids
        attention_params = Attention.fill_attention_params(self, attention_params)
        output = self.transformer.forward(
            input_ids, use_cache=use_cache, attention_params=attention_params, **kwargs
        )
        state, presents = output if use_cache else (output, ())
        packed = default_net().plugin_config.remove_input_padding
        base, channel = (f.gather_last_token_logits(x, last_token_ids, packed) for x in state)
        logits = self.lm_head(base)
        logits.mark_output("logits", self.config.logits_dtype)
        for signal, head in zip(self.config.otter["signals"], self.signals, strict=True):
            z = ACTIVATIONS[signal["activation"]](f.cast(head(channel), "float32"))
            if signal["kind"] == "value":
                z = z.view([-1])
            z.mark_output(signal["name"], "float32")
        if use_cache and not default_net().plugin_config.paged_kv_cache:
            for i, present in enumerate(presents):
                present.mark_output(f"present_key_value_{i}", self.config.kv_dtype)
        return logits


def _first(x: Tensor, widths: Width) -> Tensor:
    """Of a base's heads the first ones, as many as the channel has."""
    base, channel = widths
    if base == channel:
        return x
    return f.split(x, [channel, base - channel], dim=x.ndim() - 1)[0]


def _add(left: State, right: State) -> State:
    return left[0] + right[0], left[1] + right[1]


MODEL_MAP[OtterForCausalLM.__name__] = OtterForCausalLM
