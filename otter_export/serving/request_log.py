"""One line of JSON per request on stderr, which the server's own log receives."""

from __future__ import annotations

import contextlib
import datetime
import json
import sys
from collections.abc import Mapping
from typing import Any, TextIO

from otter_export.errors import OtterError
from otter_export.runtime.request import Result
from otter_export.runtime.scheduler import Observer, RequestHandle
from otter_export.runtime.scheduler.observer import outcome_name
from otter_export.serving.error_text import log_text, one_line

#: Characters of a client's own name for its request.
_ID_LIMIT = 128


class RequestLog(Observer):
    """Writes what happened to requests; prompts and texts only if asked to.

    Args:
        context: Fields of every line, such as the model's name.
        requests: Whether requests that got their result have a line; the others always do.
        prompts: Whether lines have the prompt and the text.
        stream: Where to write; None is stderr.
    """

    def __init__(
        self,
        context: Mapping[str, Any],
        *,
        requests: bool = True,
        prompts: bool = False,
        stream: TextIO | None = None,
    ) -> None:
        self._context = dict(context)
        self._requests = requests
        self._prompts = prompts
        self._stream = stream

    def write(self, event: str, *, level: str = "info", **fields: Any) -> None:
        """Write one line; where nobody takes it, requests are answered all the same."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "level": level, "event": event, **self._context, **fields}
        if isinstance(name := fields.get("request_id"), str):
            line["request_id"] = one_line(name, _ID_LIMIT)
        stream = self._stream or sys.stderr
        # A full disk, a closed pipe, a closed stream.
        with contextlib.suppress(OSError, ValueError):
            # One write, so that lines of several threads do not mix.
            stream.write(json.dumps(line, ensure_ascii=True) + "\n")
            stream.flush()

    def rejected(self, request_id: str | None, error: OtterError) -> None:
        """A request was refused."""
        self.write("rejected", level="warning", request_id=request_id, error=log_text(error))

    def ended(self, handle: RequestHandle, outcome: Result | OtterError, seconds: float) -> None:
        """A request got its result or its error."""
        fields: dict[str, Any] = {
            "request_id": handle.request_id,
            "method": handle.request.method.name,
            "prompt_tokens": handle.prompt_tokens,
            "seconds": round(seconds, 4),
        }
        if isinstance(outcome, Result):
            fields |= _measures(outcome)
        else:
            fields["error"] = log_text(outcome)
        if self._prompts:
            fields["prompt"] = handle.request.prompt
            if isinstance(outcome, Result):
                fields["text"] = outcome.text
        event = outcome_name(outcome)
        if event != "completed" or self._requests:
            levels = {"failed": "error", "expired": "warning"}
            self.write(event, level=levels.get(event, "info"), **fields)


def _measures(result: Result) -> dict[str, Any]:
    rewards = result.rewards
    return {
        "tokens": len(result.token_ids),
        "forwards": result.forwards,
        "finish_reason": result.finish_reason,
        "mean_reward": round(sum(rewards) / len(rewards), 6) if rewards else None,
    }
