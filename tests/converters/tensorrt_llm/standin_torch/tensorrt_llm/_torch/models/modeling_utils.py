"""Bases of decoder models, and the registry of architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tensorrt_llm._torch.modules.embedding import LMHead
from tensorrt_llm._torch.modules.linear import TensorParallelMode

MODEL_CLASS_MAPPING: dict[str, Any] = {}


def register_auto_model(name: str) -> Callable[[Any], Any]:
    def decorate(cls: Any) -> Any:
        MODEL_CLASS_MAPPING[name] = cls
        return cls

    return decorate


class DecoderModel(nn.Module):
    def __init__(self, model_config: Any) -> None:
        super().__init__()
        self.model_config = model_config


class LogitsProcessor(nn.Module):
    def forward(
        self, hidden: torch.Tensor, lm_head: Any, attn_metadata: Any, return_context_logits: bool
    ) -> torch.Tensor:
        if not return_context_logits:
            hidden = hidden[torch.cumsum(attn_metadata.seq_lens_cuda, 0) - 1]
        logits: torch.Tensor = lm_head(hidden)
        return logits.float()


class DecoderModelForCausalLM(nn.Module):
    def __init__(self, model: Any, *, config: Any, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.model_config, self.model = config, model
        self.lm_head = LMHead(
            vocab_size,
            hidden_size,
            dtype=config.pretrained_config.torch_dtype,
            mapping=config.mapping,
            tensor_parallel_mode=TensorParallelMode.COLUMN,
            gather_output=True,
        )
        if config.pretrained_config.tie_word_embeddings:
            self.lm_head.weight = model.embed_tokens.weight
        self.logits_processor = LogitsProcessor()
        for module in self.modules():
            if callable(getattr(module, "create_weights", None)):
                module.create_weights()

    @property
    def config(self) -> Any:
        return self.model_config.pretrained_config
