"""Requests from a JSON Lines file: one prompt per line, each with its own options if it wants."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from otter_export.arguments import path_argument
from otter_export.errors import OtterError, RequestError
from otter_export.json_lines import read_lines
from otter_export.quoting import listed, one_line, quoted
from otter_export.runtime.chat import SYSTEM, Chat, Message
from otter_export.runtime.methods import make_method, method_options
from otter_export.runtime.penalties import Penalties
from otter_export.runtime.request import Request

#: Options of a request besides those of its method.
_REQUEST_OPTIONS = ("max_tokens", "stop", "seed", "drafts", "rewards_from")
_METHOD_OPTIONS = (
    *("top_k", "weight", "weights", "minimum", "gate"),
    *("temperature", "top_p", "signal", "prune"),
)
PENALTIES = tuple(field.name for field in dataclasses.fields(Penalties))
FIELDS = ("prompt", "messages", "method", *_METHOD_OPTIONS, *_REQUEST_OPTIONS, *PENALTIES)
#: An option that stands for others: where a request has the one, defaults of the others are void.
_INSTEAD = {"weights": ("weight", "signal"), "weight": ("weights",), "signal": ("weights",)}
_LIMIT_BYTES = 256 << 20
#: Problems that one message lists.
_SHOWN = 5
_PROBLEM_LENGTH = 400


@dataclasses.dataclass(frozen=True)
class Defaults:
    """What a request takes where it says nothing itself.

    Args:
        method: Registered name of a decoding method.
        options: Options of that method; another method takes those that it knows.
        request: ``max_tokens``, ``stop``, ``seed``, ``drafts``, ``rewards_from`` and `PENALTIES`,
            where they differ from `Request`'s own.
        chat: Whether a text is the user's first message, and no text to go on with.
        system: What chats begin with that have no system prompt; None for nothing.
    """

    method: str = "args-greedy"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    request: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    chat: bool = False
    system: str | None = None

    def request_for(self, prompt: Any, overrides: Mapping[str, Any] | None = None) -> Request:
        """A request.

        Args:
            prompt: Text, token ids or a `Chat`.
            overrides: Options of this request, by the names in `FIELDS`; None values do not count.

        Raises:
            RequestError, UnsupportedError: An option is unknown to the method or out of range.
        """
        given = {k: v for k, v in (overrides or {}).items() if v is not None}
        name = given.get("method", self.method)
        if not isinstance(name, str):
            raise RequestError(f"method must be the name of a method, got {quoted(name)}")
        accepted = method_options(name)
        options = {k: v for k, v in self.options.items() if k in accepted or name == self.method}
        for void in (other for k in given for other in _INSTEAD.get(k, ())):
            options.pop(void, None)
        options |= {k: v for k, v in given.items() if k in _METHOD_OPTIONS}
        own = (*_REQUEST_OPTIONS, *PENALTIES)
        request = {**self.request, **{k: v for k, v in given.items() if k in own}}
        penalties = Penalties(**{k: request.pop(k) for k in PENALTIES if k in request})
        prompt = self._prompt(prompt)
        return Request(prompt, make_method(name, options), penalties=penalties, **request)

    def _prompt(self, prompt: Any) -> Any:
        if self.chat and isinstance(prompt, str):
            prompt = Chat.of(prompt)
        if self.system is None or not isinstance(prompt, Chat):
            return prompt
        has_own = any(message.role == SYSTEM for message in prompt.messages)
        return prompt if has_own else Chat((Message(SYSTEM, self.system), *prompt.messages))


def read_prompts(path: str | Path, defaults: Defaults) -> list[Request]:
    """Read and check all lines of a file.

    Args:
        path: A file of JSON objects, one a line: ``{"prompt": "..."}`` or ``{"messages": [...]}``,
            and any of `FIELDS`. Blank lines are skipped. A pipe will do; ``-`` is standard input.
        defaults: What lines take where they say nothing.

    Raises:
        RequestError: The file cannot be read, has no prompts, or lines are wrong; the message
            names each by its number.
    """
    requests: list[Request] = []
    problems: list[str] = []
    path = path_argument("path", path)
    lines = read_lines(path, "prompts", limit=_LIMIT_BYTES, error=RequestError)
    for number, line in lines:
        try:
            requests.append(_request(line, defaults))
        except OtterError as error:
            problems.append(f"line {number}: {one_line(str(error), _PROBLEM_LENGTH)}")
    if problems:
        more = f"; and {len(problems) - _SHOWN} more lines" if len(problems) > _SHOWN else ""
        raise RequestError(f"{path}: {'; '.join(problems[:_SHOWN])}{more}")
    if not requests:
        raise RequestError(f'{path} has no prompts; expected lines like {{"prompt": "The film"}}')
    return requests


def _request(line: bytes, defaults: Defaults) -> Request:
    try:
        data = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RequestError(f"not UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise RequestError(f"not JSON: {error}") from None
    if not isinstance(data, dict) or ("prompt" in data) == ("messages" in data):
        raise RequestError('expected an object with "prompt" or "messages", and not with both')
    unknown = set(data) - set(FIELDS)
    if unknown:
        raise RequestError(f"unknown field {listed(unknown)}; known: {', '.join(FIELDS)}")
    prompt = data.pop("prompt") if "prompt" in data else Chat(data.pop("messages"))
    return defaults.request_for(prompt, data)
