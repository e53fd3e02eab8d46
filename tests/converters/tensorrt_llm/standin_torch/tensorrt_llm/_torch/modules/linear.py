"""A linear layer, whole or divided among ranks."""

from __future__ import annotations

import enum
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from tensorrt_llm.ranks import Mapping, exchange


class TensorParallelMode(enum.StrEnum):
    COLUMN = "column"
    ROW = "row"


class Linear(nn.Module):
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        dtype: torch.dtype | None = None,
        mapping: Mapping | None = None,
        tensor_parallel_mode: TensorParallelMode | None = None,
        gather_output: bool = False,
        reduce_output: bool = True,
    ) -> None:
        super().__init__()
        self.mapping = mapping or Mapping()
        self.tp_size, self.tp_rank = self.mapping.tp_size, self.mapping.tp_rank
        self.tp_mode, self.gather_output = tensor_parallel_mode, gather_output
        self.reduce_output = reduce_output
        rows, columns = out_features, in_features
        if tensor_parallel_mode is TensorParallelMode.COLUMN:
            assert rows % self.tp_size == 0
            rows //= self.tp_size
        if tensor_parallel_mode is TensorParallelMode.ROW:
            assert columns % self.tp_size == 0
            columns //= self.tp_size
        self.weight = nn.Parameter(torch.empty(rows, columns, dtype=dtype), requires_grad=False)
        self.register_parameter("bias", None)
        if bias:
            self.bias = nn.Parameter(torch.empty(rows, dtype=dtype), requires_grad=False)

    def create_weights(self) -> None:
        """Already made."""

    def load_weights(self, weights: list[dict[str, torch.Tensor]]) -> None:
        """Whole tensors, each divided in its own right and joined if there are several."""
        self.weight.data.copy_(torch.cat([self._part(given["weight"]) for given in weights]))
        assert all(("bias" in given) is (self.bias is not None) for given in weights)
        if self.bias is not None:
            self.bias.data.copy_(torch.cat([self._part(given["bias"]) for given in weights]))

    def _part(self, whole: torch.Tensor) -> torch.Tensor:
        if self.tp_mode is TensorParallelMode.COLUMN:
            padding = [0, 0] * (whole.ndim - 1) + [0, -len(whole) % self.tp_size]
            return functional.pad(whole, padding).chunk(self.tp_size)[self.tp_rank]
        if self.tp_mode is TensorParallelMode.ROW and whole.ndim == 2:
            return whole.chunk(self.tp_size, dim=1)[self.tp_rank]
        return whole

    def forward(
        self,
        input: torch.Tensor,
        *,
        all_reduce_params: Any = None,
        lora_params: Any = None,
        layer_idx: int | None = None,
    ) -> torch.Tensor:
        assert input.dtype == self.weight.dtype
        if self.tp_mode is not TensorParallelMode.ROW:
            y = functional.linear(input, self.weight, self.bias)
            return torch.cat(exchange(y), -1) if self.gather_output and self.tp_size > 1 else y
        # The bias is added once: by the first rank, before the sum.
        y = functional.linear(input, self.weight, self.bias if self.tp_rank == 0 else None)
        return torch.stack(exchange(y)).sum(0) if self.tp_size > 1 else y
