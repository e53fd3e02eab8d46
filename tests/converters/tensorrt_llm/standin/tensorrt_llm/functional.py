"""Tensors and operations, computed at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tensorrt_llm._common import default_net

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class Tensor:
    """A network tensor; operands need one dtype, as in a strongly typed network."""

    def __init__(self, data: torch.Tensor) -> None:
        self.data = data

    @property
    def dtype(self) -> torch.dtype:
        return self.data.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    def ndim(self) -> int:
        return self.data.ndim

    def view(self, shape: Sequence[int], zero_is_placeholder: bool = True) -> Tensor:
        return Tensor(self.data.reshape(list(shape)))

    def mean(self, dim: Any, keepdim: bool = False) -> Tensor:
        return Tensor(self.data.mean(dim, keepdim=keepdim))

    def sqrt(self) -> Tensor:
        return Tensor(self.data.sqrt())

    def mark_output(self, name: str | None = None, dtype: str | None = None) -> None:
        assert name is not None and dtype is not None
        outputs = default_net().outputs
        assert name not in outputs, f"two outputs are named {name}"
        outputs[name] = self.data.to(DTYPES[dtype])

    def __add__(self, other: Any) -> Tensor:
        return Tensor(self.data + _operand(self, other))

    def __mul__(self, other: Any) -> Tensor:
        return Tensor(self.data * _operand(self, other))

    def __truediv__(self, other: Any) -> Tensor:
        return Tensor(self.data / _operand(self, other))


def _operand(left: Tensor, right: Any) -> Any:
    if not isinstance(right, Tensor):
        assert isinstance(right, (int, float))
        return right
    assert left.dtype == right.dtype, f"operands of {left.dtype} and {right.dtype}"
    # Networks broadcast sizes of 1 only; a vector counts as the last dimension.
    for a, b in zip(reversed(left.shape), reversed(right.shape), strict=False):
        assert a == b or 1 in (a, b), f"operands of shapes {left.shape} and {right.shape}"
    return right.data


def cast(input: Tensor, dtype: str | torch.dtype) -> Tensor:
    return Tensor(input.data.to(DTYPES[dtype] if isinstance(dtype, str) else dtype))


def pow(left: Tensor, right: float) -> Tensor:
    return Tensor(left.data**right)


def tanh(input: Tensor) -> Tensor:
    return Tensor(input.data.tanh())


def sigmoid(input: Tensor) -> Tensor:
    return Tensor(input.data.sigmoid())


def silu(input: Tensor) -> Tensor:
    return input * sigmoid(input)


def concat(inputs: Sequence[Tensor], dim: int = 0) -> Tensor:
    assert len({x.dtype for x in inputs}) == 1
    return Tensor(torch.cat([x.data for x in inputs], dim))


def split(tensor: Tensor, split_size_or_sections: Sequence[int], dim: int = 0) -> list[Tensor]:
    assert sum(split_size_or_sections) == tensor.shape[dim]
    return [Tensor(x) for x in torch.split(tensor.data, list(split_size_or_sections), dim)]


def gather_last_token_logits(
    hidden_states: Tensor, last_token_ids: Tensor | None, remove_input_padding: bool
) -> Tensor:
    assert remove_input_padding
    if last_token_ids is None:
        return hidden_states
    return Tensor(hidden_states.data[last_token_ids.data.long() - 1])


class AllReduceParams:
    """Strategy and fusion of an all-reduce: the defaults."""


def allreduce(
    tensor: Tensor, group: Sequence[int], all_reduce_params: AllReduceParams | None = None
) -> Tensor:
    network = default_net()
    assert network.rank in group
    network.world.all_reduces += network.rank == group[0]
    parts = network.world.exchange(network.rank, tensor.data)
    return Tensor(torch.stack(parts).sum(0))


def allgather(tensor: Tensor, group: Sequence[int], gather_dim: int = 0) -> Tensor:
    network = default_net()
    assert network.rank in group
    return Tensor(torch.cat(network.world.exchange(network.rank, tensor.data), gather_dim))
