"""The way back to a client of Triton's Python backend, and the way of metrics to its page."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

# Made by the backend, inside its own process only.
import triton_python_backend_utils as pb_utils

from otter_export.errors import (
    CancelledError,
    DeadlineError,
    EngineError,
    OtterError,
    QueueFullError,
)
from otter_export.serving.error_text import client_text
from otter_export.serving.metrics import GAUGES, Labels, description
from otter_export.serving.responder import Outputs

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL


class TritonChannel:
    """One request's response sender.

    Args:
        sender: From ``request.get_response_sender()``.
        private: Directories that no client hears of.
    """

    def __init__(self, sender: Any, private: Sequence[str] = ()) -> None:
        self._sender = sender
        self._private = tuple(private)
        # The server forgets a request with its final response; to ask about it after that would
        # be to ask about freed memory.
        self._lock = threading.Lock()
        self._closed = False

    def send(self, outputs: Outputs, *, final: bool) -> None:
        """See `Channel`."""
        tensors = [pb_utils.Tensor(name, array) for name, array in outputs.items()]
        self._send(pb_utils.InferenceResponse(output_tensors=tensors), final)

    def fail(self, error: OtterError) -> None:
        """See `Channel`."""
        message = client_text(error, *self._private)
        failure = pb_utils.TritonError(message, error_code(error))
        self._send(pb_utils.InferenceResponse(output_tensors=[], error=failure), True)

    def is_cancelled(self) -> bool:
        """See `Channel`."""
        with self._lock:
            return not self._closed and bool(self._sender.is_cancelled())

    def _send(self, response: Any, final: bool) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = final
            self._sender.send(response, flags=_FINAL if final else 0)


class TritonMetrics:
    """Metric families of one model instance.

    Args:
        labels: Labels of every metric.
    """

    def __init__(self, labels: dict[str, str]) -> None:
        self._labels = labels
        self._families: dict[str, Any] = {}
        self._metrics: dict[tuple[str, Labels], Any] = {}

    def add(self, name: str, labels: Labels, amount: float) -> None:
        """A counter grew."""
        self._metric(name, labels).increment(amount)

    def set(self, name: str, labels: Labels, value: float) -> None:
        """A gauge has a new value."""
        self._metric(name, labels).set(value)

    def _metric(self, name: str, labels: Labels) -> Any:
        if (name, labels) not in self._metrics:
            if name not in self._families:
                kind = "GAUGE" if name in GAUGES else "COUNTER"
                self._families[name] = pb_utils.MetricFamily(
                    name=name,
                    description=description(name),
                    kind=getattr(pb_utils.MetricFamily, kind),
                )
            family = self._families[name]
            self._metrics[name, labels] = family.Metric(labels={**self._labels, **dict(labels)})
        return self._metrics[name, labels]


def error_code(error: OtterError) -> Any:
    """Triton's code of an error."""
    codes = pb_utils.TritonError
    if isinstance(error, QueueFullError | DeadlineError):
        return codes.UNAVAILABLE
    if isinstance(error, CancelledError):
        return codes.CANCELLED
    return codes.INTERNAL if isinstance(error, EngineError) else codes.INVALID_ARG
