"""From the JSON of OpenAI's API to a request of ours, by the parser that Triton's model has.

What OpenAI calls otherwise is renamed; what this server does not do is refused rather than left
out; everything else has the names and limits of Triton's inputs (docs/serving.md).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export.arguments import as_integer
from otter_export.errors import RequestError
from otter_export.quoting import nearest, quoted
from otter_export.runtime.chat import Chat
from otter_export.runtime.engine import Tokenizer
from otter_export.serving.parsing import ServedRequest, parse_request
from otter_export.serving.settings import Settings
from otter_export.serving.tensors import INPUTS, NUMPY_TYPES, TensorField

#: Inputs of Triton's model that have a name of OpenAI's here, or stand for the prompt.
_RENAMED = {"stop": "stop_words"}
_HIDDEN = ("text_input", "input_ids", *_RENAMED.values())
_FIELDS = {field.name: field for field in INPUTS}
_OWN = tuple(name for name in _FIELDS if name not in _HIDDEN)
#: Fields that change nothing here.
_IGNORED = (
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"),
    *("stream_options", "model"),
)
#: What other values of a field would ask for is not done; these ask for nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False, 0),
    "top_logprobs": (0,),
    "logit_bias": ({},),
    "suffix": ("",),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none",),
    "parallel_tool_calls": (True, False),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
}
#: The newer name of the system's role.
_DEVELOPER = "developer"


class FieldError(RequestError):
    """A field of the body is wrong.

    Args:
        field: Its name.
        message: What is wrong.
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclasses.dataclass(frozen=True)
class Call:
    """A call of ``/v1/completions`` or ``/v1/chat/completions``.

    Args:
        served: What to generate, and how to answer.
        include_usage: Whether a stream ends with the number of tokens.
    """

    served: ServedRequest
    include_usage: bool


def read_object(content: bytes) -> dict[str, Any]:
    """The JSON object of a body.

    Raises:
        RequestError: It is none.
    """
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise RequestError(f"the body must be a JSON object, got {quoted(body)}")
    return body


def completion_call(body: Mapping[str, Any], settings: Settings) -> Call:
    """A call of ``/v1/completions``.

    Raises:
        RequestError, UnsupportedError: A field is wrong, `FieldError` where one of them is known.
    """
    fields = _checked(body, "prompt")
    prompt = fields.pop("prompt", None)
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return _call(fields, {"text_input": _array("prompt", "text_input", prompt)}, settings)
    if not isinstance(prompt, list) or not prompt or isinstance(prompt[0], str | list):
        raise FieldError(
            "prompt", f"prompt must be one text, or the token ids of one, got {quoted(prompt)}"
        )
    return _call(fields, {"input_ids": _array("prompt", "input_ids", prompt)}, settings)


def chat_call(body: Mapping[str, Any], settings: Settings, tokenizer: Tokenizer) -> Call:
    """A call of ``/v1/chat/completions``.

    Args:
        body: The call's.
        settings: Limits and defaults.
        tokenizer: The engine's, with its chat template.

    Raises:
        RequestError, UnsupportedError: As `completion_call`; or the model has no chat template, or
            its template refuses the messages.
        EngineError: The template cannot be read.
    """
    fields = _checked(body, "messages")
    messages = fields.pop("messages", None)
    if isinstance(messages, list):
        messages = [_message(message) for message in messages]
    try:
        chat = Chat(messages)  # it checks
        size = sum(len(message.content.encode("utf-8")) for message in chat.messages)
        if size > settings.max_prompt_bytes:
            most = settings.max_prompt_bytes
            raise RequestError(f"messages have {size} bytes; at most {most} are accepted")
        ids = chat.token_ids(tokenizer)
    except RequestError as error:
        raise FieldError("messages", str(error)) from None
    return _call(fields, {"input_ids": _array("messages", "input_ids", ids)}, settings)


def _message(given: Any) -> Any:
    """A message with its parts as one text, and without fields that say nothing."""
    if not isinstance(given, dict):
        return given
    message = {k: v for k, v in given.items() if v is not None and k != "name"}
    if message.get("role") == _DEVELOPER:
        message["role"] = "system"
    parts = message.get("content")
    if isinstance(parts, list):
        texts = [
            part["text"]
            for part in parts
            if isinstance(part, dict) and set(part) == {"type", "text"} and part["type"] == "text"
        ]
        if len(texts) == len(parts) and all(isinstance(text, str) for text in texts):
            message["content"] = "".join(texts)
    return message


def _checked(body: Mapping[str, Any], prompt: str) -> dict[str, Any]:
    """The fields that say something, all of them known."""
    fields = {name: value for name, value in body.items() if value is not None}
    known = [prompt, *_OWN, *_RENAMED, "max_completion_tokens", *_NEUTRAL, *_IGNORED]
    for name, value in fields.items():
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near}?" if near else f"own fields are {', '.join(_OWN)}"
            raise FieldError(name, f"there is no field {quoted(name)}; {hint}")
        if name in _NEUTRAL and not any(_same(value, one) for one in _NEUTRAL[name]):
            accepted = " or ".join(json.dumps(one) for one in _NEUTRAL[name])
            raise FieldError(
                name, f"{name} may only be {accepted} here, or left out, got {quoted(value)}"
            )
    return fields


def _same(value: Any, other: Any) -> bool:
    """Equality of JSON values, where true is not 1."""
    return type(value) is type(other) and bool(value == other)


def _call(fields: dict[str, Any], prompt: dict[str, npt.NDArray[Any]], settings: Settings) -> Call:
    if "max_completion_tokens" in fields:
        if "max_tokens" in fields:
            raise FieldError(
                "max_tokens", "there are both max_tokens and max_completion_tokens; send one"
            )
        fields["max_tokens"] = fields.pop("max_completion_tokens")
    options = fields.get("stream_options", {})
    if not isinstance(options, dict) or not set(options) <= {"include_usage"}:
        raise FieldError(
            "stream_options", f"stream_options may have include_usage alone, got {quoted(options)}"
        )
    tensors = dict(prompt)
    for name in (*_OWN, *_RENAMED):
        if name in fields:
            own = _RENAMED.get(name, name)
            tensors[own] = _array(name, own, fields[name])
    served = parse_request(tensors, settings)
    return Call(served, served.stream and options.get("include_usage") is True)


def _array(name: str, tensor: str, value: Any) -> npt.NDArray[Any]:
    """A value of JSON as the input that Triton's clients send.

    Args:
        name: The field's name, for messages.
        tensor: The input's.
        value: What came.
    """
    field = _FIELDS[tensor]
    values = value if field.many and isinstance(value, list) else [value]
    return np.array([_element(name, field, one) for one in values], NUMPY_TYPES[field.data_type])


def _element(name: str, field: TensorField, value: Any) -> Any:
    kind = field.data_type
    wanted = "a number"
    if kind == "STRING":
        wanted = "text"
        if isinstance(value, str):
            return _utf8(name, value)
    elif kind == "BOOL":
        wanted = "true or false"
        if isinstance(value, bool):
            return value
    elif kind == "FP32":
        if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30:
            return value
    else:
        limits = np.iinfo(NUMPY_TYPES[kind])
        wanted = f"an integer from {limits.min} to {limits.max}"
        number = as_integer(value)
        if number is not None and limits.min <= number <= limits.max:
            return number
    several = ", or a list of them" if field.many else ""
    raise FieldError(name, f"{name} must be {wanted}{several}, got {quoted(value)}")


def _utf8(name: str, text: str) -> bytes:
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FieldError(
            name, f"{name} is not valid Unicode: character {error.start} is half of a pair"
        ) from None
