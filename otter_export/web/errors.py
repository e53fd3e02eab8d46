"""Errors in OpenAI's form, and which status each has."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from otter_export.errors import (
    CancelledError,
    DeadlineError,
    EngineError,
    MissingDependencyError,
    OtterError,
    QueueFullError,
)
from otter_export.serving.error_text import client_text
from otter_export.web.body import FieldError

#: Kinds of errors by status; others below 500 are mistakes of the request.
_TYPES = {429: "rate_limit_error", 404: "not_found_error"}
_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    408: "request_timeout",
    413: "request_too_large",
    429: "queue_full",
    503: "unavailable",
    504: "deadline_exceeded",
}


class StatusError(OtterError):
    """An error of HTTP's own, such as a body that is too large.

    Args:
        status: The status.
        message: What is wrong.
        field: The field of the body that is, if one is.
    """

    def __init__(self, status: int, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.field = field


def status_of(error: OtterError, *, accepted: bool = False) -> int:
    """The status of an error.

    Args:
        error: The error.
        accepted: Whether it comes after the request was accepted: then the engine failed.
    """
    if isinstance(error, StatusError):
        return error.status
    if isinstance(error, QueueFullError):
        return 429
    if isinstance(error, DeadlineError):
        return 504
    if isinstance(error, CancelledError):
        return 503
    if isinstance(error, MissingDependencyError) or (accepted and isinstance(error, EngineError)):
        return 500
    return 400


def error_object(error: OtterError, status: int, *private: str) -> dict[str, Any]:
    """An error as OpenAI's clients read it.

    Args:
        error: The error.
        status: Its status.
        private: Directories that clients do not hear of.
    """
    kind = "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
    field = error.field if isinstance(error, FieldError | StatusError) else None
    return {
        "error": {
            "message": client_text(error, *private),
            "type": kind,
            "param": field,
            "code": _CODES.get(status),
        }
    }


def error_response(error: OtterError, status: int, *private: str) -> JSONResponse:
    """The answer to a request that came to nothing."""
    headers = {"Retry-After": "1"} if status in (429, 503) else None
    return JSONResponse(error_object(error, status, *private), status, headers)
