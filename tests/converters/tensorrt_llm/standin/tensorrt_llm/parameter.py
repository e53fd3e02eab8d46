"""Weights of a module."""

from __future__ import annotations

from typing import Any

import torch

from tensorrt_llm.functional import DTYPES, Tensor


class Parameter:
    """A weight of fixed shape and dtype, without a value until it is loaded."""

    def __init__(
        self,
        value: torch.Tensor | None = None,
        shape: Any = None,
        dtype: str | None = None,
        is_buffer: bool = False,
    ) -> None:
        assert dtype is not None
        self.shape = tuple(shape) if value is None else tuple(value.shape)
        self.dtype = DTYPES[dtype]
        self._value = value

    def is_inited(self) -> bool:
        return self._value is not None

    @property
    def value(self) -> Tensor:
        assert self._value is not None, "a weight was used before it was loaded"
        return Tensor(self._value)

    @value.setter
    def value(self, value: torch.Tensor) -> None:
        assert tuple(value.shape) == self.shape, f"{tuple(value.shape)}, expected {self.shape}"
        assert value.dtype == self.dtype, f"{value.dtype}, expected {self.dtype}"
        self._value = value
