"""Llama's configuration."""

from __future__ import annotations

from typing import Any

from tensorrt_llm.models.modeling_utils import PretrainedConfig


class LLaMAConfig(PretrainedConfig):
    def __init__(
        self,
        *,
        mlp_bias: bool = False,
        attn_bias: bool = False,
        rotary_base: float = 10000.0,
        rotary_scaling: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.mlp_bias, self.attn_bias = mlp_bias, attn_bias
        self.rotary_base, self.rotary_scaling = rotary_base, rotary_scaling
        super().__init__(**kwargs)
