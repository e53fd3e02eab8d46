"""The gated feed-forward layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tensorrt_llm._torch.modules.linear import Linear, TensorParallelMode


class GatedMLP(nn.Module):
    def __init__(
        self,
        *,
        hidden_size: int,
        intermediate_size: int,
        bias: bool,
        dtype: torch.dtype,
        config: Any,
    ) -> None:
        super().__init__()
        arguments: dict[str, Any] = {"bias": bias, "dtype": dtype, "mapping": config.mapping}
        self.gate_up_proj = Linear(
            hidden_size,
            2 * intermediate_size,
            tensor_parallel_mode=TensorParallelMode.COLUMN,
            **arguments,
        )
        self.down_proj = Linear(
            intermediate_size,
            hidden_size,
            tensor_parallel_mode=TensorParallelMode.ROW,
            **arguments,
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        fed: torch.Tensor = self.down_proj(functional.silu(gate) * up)
        return fed
