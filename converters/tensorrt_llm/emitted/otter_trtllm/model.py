"""Llama, Mistral or Qwen2 with an Otter channel, for TensorRT-LLM's PyTorch backend (from 1.3).

The state is ``x``, ``[tokens, width]``, in the layers below the channel's first one, and the pair
``(x, x')`` from there on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from otter_trtllm.layers import (
    BaseDecoderLayer,
    OtterDecoderLayer,
    State,
    WidenedNorm,
    heads_with_channel,
    parameter,
)
from otter_trtllm.weights import load
from tensorrt_llm._torch.models.modeling_utils import (
    DecoderModel,
    DecoderModelForCausalLM,
    register_auto_model,
)
from tensorrt_llm._torch.modules.embedding import Embedding
from tensorrt_llm._torch.modules.linear import TensorParallelMode
from torch import Tensor, nn
from torch.nn import functional

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class OtterModel(DecoderModel):
    """Embedding, decoder layers and final norm; the channel begins before one of these."""

    def __init__(self, model_config: Any) -> None:
        super().__init__(model_config)
        config, channel = model_config.pretrained_config, model_config.pretrained_config.otter
        self.embed_tokens = Embedding(
            config.vocab_size,
            config.hidden_size,
            dtype=config.torch_dtype,
            mapping=model_config.mapping,
            tensor_parallel_mode=TensorParallelMode.COLUMN,
            gather_output=True,
        )
        self.is_table, width = channel["embedding"] == "table", channel["hidden_size"]
        shape = (config.vocab_size, width) if self.is_table else (width, config.hidden_size)
        self.channel_start = parameter(config, *shape)
        self.first_layer = channel["first_layer"]
        self.layers = nn.ModuleList(
            (BaseDecoderLayer if i < self.first_layer else OtterDecoderLayer)(model_config, i)
            for i in range(config.num_hidden_layers)
        )
        self.norm = WidenedNorm(config)

    def forward(self, attn_metadata: Any, input_ids: Tensor, position_ids: Any) -> State:
        base, layers = self.embed_tokens(input_ids), list(self.layers)
        for layer in layers[: self.first_layer]:
            base = layer(position_ids, base, attn_metadata)
        read = functional.embedding if self.is_table else functional.linear
        state = (base, read(input_ids if self.is_table else base, self.channel_start))
        for layer in layers[self.first_layer :]:
            state = layer(position_ids, state, attn_metadata)
        return self.norm(state)


class SignalHead(nn.Module):
    """``W n' + b`` of the final state; float32."""

    def __init__(self, config: Any, rows: int) -> None:
        super().__init__()
        self.weight = parameter(config, rows, config.otter["hidden_size"])
        self.bias = parameter(config, rows)

    def forward(self, channel: Tensor) -> Tensor:
        return functional.linear(channel, self.weight, self.bias).float()


@register_auto_model("OtterForCausalLM")
class OtterForCausalLM(DecoderModelForCausalLM):
    """Gives ``logits``, and every signal for the last token of each sequence: ``[sequences, n]``.

    n is 1 for a value, V for a q_value. A request gets a signal by naming it in
    ``SamplingParams(additional_model_outputs=[..])``.
    """

    def __init__(self, model_config: Any) -> None:
        config, mapping = model_config.pretrained_config, model_config.mapping
        if mapping.pp_size > 1 or mapping.enable_attention_dp:
            raise ValueError("OtterForCausalLM supports tensor parallelism only (--tp_size)")
        otter, tp = config.otter, mapping.tp_size
        for kind in ("attention_heads", "key_value_heads"):
            if otter[f"base_{kind}"] % tp:
                raise ValueError(f"{otter[f'base_{kind}']} {kind} on {tp} ranks")
        # What sizes the KV cache: a number, or one for each layer, as TensorRT-LLM's Nemotron-NAS
        # sets it (_torch/models/modeling_nemotron_nas.py) for the cache manager to read
        # (_torch/pyexecutor/resource_manager.py), both in 1.3.
        layers, first = config.num_hidden_layers, otter["first_layer"]
        base = (otter["base_attention_heads"], otter["base_key_value_heads"])
        heads = [base] * first + [heads_with_channel(otter, tp)] * (layers - first)
        key_values = [count for _, count in heads]
        # Past transformers 5's own checks, which want an integer here and no list.
        vars(config).update(
            num_attention_heads=heads[0][0],  # with the first count the proportion of all layers
            num_key_value_heads=key_values if len(set(key_values)) > 1 else key_values[0],
        )
        super().__init__(
            OtterModel(model_config),
            config=model_config,
            hidden_size=config.hidden_size,
            vocab_size=config.vocab_size,
        )
        rows = {"value": 1, "q_value": config.vocab_size, "expert": config.vocab_size}
        self.signals = nn.ModuleList(SignalHead(config, rows[s["kind"]]) for s in otter["signals"])

    def forward(
        self,
        attn_metadata: Any,
        input_ids: Any = None,
        position_ids: Any = None,
        inputs_embeds: Any = None,
        return_context_logits: bool = False,
        **_: Any,
    ) -> dict[str, Tensor]:
        if inputs_embeds is not None:
            raise ValueError("OtterForCausalLM reads input_ids, not inputs_embeds")
        base, channel = self.model(attn_metadata, input_ids, position_ids)
        logits = self.logits_processor.forward(
            base, self.lm_head, attn_metadata, return_context_logits
        )
        last = torch.cumsum(attn_metadata.seq_lens_cuda, dim=0, dtype=torch.long) - 1
        outputs = {"logits": logits}
        for signal, head in zip(self.config.otter["signals"], self.signals, strict=True):
            outputs[signal["name"]] = ACTIVATIONS[signal["activation"]](head(channel[last]))
        return outputs

    def load_weights(self, weights: Any, *_: Any, **__: Any) -> None:
        """Take every tensor of the directory; see `otter_trtllm.weights.load`."""
        load(self, weights)
