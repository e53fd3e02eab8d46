"""Stands in for ``triton_python_backend_utils``, which exists in the server's process only.

It is as strict as the real one where that matters: a response after the final one, a question about
a request after it, a counter that falls and a metric of an unknown label set are errors.
"""

from __future__ import annotations

import dataclasses
import json
import threading
import types
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class TritonModelException(Exception):
    """What a model raises to say that it cannot be loaded."""


class TritonError:
    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED = range(6)
    ALREADY_EXISTS, CANCELLED = 6, 7

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        assert isinstance(message, str)
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    def __init__(self, name: str, array: np.ndarray[Any, Any]) -> None:
        assert isinstance(name, str) and isinstance(array, np.ndarray)
        if array.dtype == np.object_:
            assert all(type(item) is bytes for item in array.reshape(-1)), "texts must be bytes"
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray[Any, Any]:
        return self._array


class InferenceResponse:
    def __init__(self, output_tensors: list[Tensor], error: TritonError | None = None) -> None:
        self._tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def error(self) -> TritonError | None:
        return self._error


class ResponseSender:
    """Keeps what was sent; `wait` returns when the last response is here."""

    def __init__(self) -> None:
        self.sent: list[InferenceResponse] = []
        self.cancelled = False
        self._final = threading.Event()

    def send(self, response: InferenceResponse | None, flags: int = 0) -> None:
        if self._final.is_set():
            raise RuntimeError("the response sender has been closed")
        if response is not None:
            self.sent.append(response)
        if flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL:
            self._final.set()

    def is_cancelled(self) -> bool:
        if self._final.is_set():
            raise RuntimeError("asked about a request that the server has forgotten")
        return self.cancelled

    def wait(self, seconds: float = 30.0) -> list[InferenceResponse]:
        assert self._final.wait(seconds), "no final response"
        return self.sent


@dataclasses.dataclass
class InferenceRequest:
    tensors: Mapping[str, np.ndarray[Any, Any]]
    name: str = ""
    microseconds: int = 0
    fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sender: ResponseSender = dataclasses.field(default_factory=ResponseSender)

    def get_response_sender(self) -> ResponseSender:
        return self.sender

    def request_id(self) -> str:
        return self.name

    def timeout(self) -> int:
        return self.microseconds

    def parameters(self) -> str:
        return json.dumps(dict(self.fields)) if self.fields else ""


def get_input_tensor_by_name(request: InferenceRequest, name: str) -> Tensor | None:
    array = request.tensors.get(name)
    return None if array is None else Tensor(name, array)


class MetricFamily:
    COUNTER, GAUGE, HISTOGRAM = range(3)
    #: All metrics, by family and labels: what the server's page shows.
    page: ClassVar[dict[tuple[str, frozenset[tuple[str, str]]], float]] = {}

    def __init__(self, name: str, description: str, kind: int) -> None:
        assert description
        self.name, self.kind = name, kind

    def Metric(self, labels: dict[str, str]) -> _Metric:
        return _Metric(self, labels)


class _Metric:
    def __init__(self, family: MetricFamily, labels: dict[str, str]) -> None:
        assert all(isinstance(v, str) for v in labels.values())
        self._kind = family.kind
        self._key = (family.name, frozenset(labels.items()))
        MetricFamily.page[self._key] = 0.0

    def increment(self, amount: float) -> None:
        if self._kind == MetricFamily.COUNTER and amount < 0:
            raise ValueError("a counter cannot fall")
        MetricFamily.page[self._key] += amount

    def set(self, value: float) -> None:
        if self._kind != MetricFamily.GAUGE:
            raise ValueError("only a gauge can be set")
        MetricFamily.page[self._key] = value


def as_module() -> types.ModuleType:
    """A fresh module of these names."""
    module = types.ModuleType("triton_python_backend_utils")
    vars(module).update(
        {name: value for name, value in globals().items() if not name.startswith("_")}
    )
    MetricFamily.page.clear()
    return module
