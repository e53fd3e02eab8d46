"""From the tensors of a request to what the scheduler takes; a mistake has one clear error."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export.arguments import as_integer, named_numbers
from otter_export.errors import EngineError, RequestError
from otter_export.quoting import listed, nearest, quoted
from otter_export.runtime.drafts import NONE
from otter_export.runtime.methods import METHODS, make_method, method_options
from otter_export.runtime.methods.base import DecodingMethod
from otter_export.runtime.penalties import Penalties
from otter_export.runtime.prompt_file import PENALTIES
from otter_export.runtime.request import Request
from otter_export.serving.settings import AUTO, Settings
from otter_export.serving.tensors import INPUT_NAMES, INPUTS, NUMPY_TYPES, TensorField

#: Names of the tensors that are options of a method, and what the methods call them.
METHOD_OPTIONS = {
    "top_k": "top_k",
    "reward_weight": "weight",
    "weights": "weights",
    "minimum": "minimum",
    "gate": "gate",
    "temperature": "temperature",
    "top_p": "top_p",
    "signal": "signal",
}
#: Values that mean "not set" to methods that do not sample: the OpenAI frontend sends all fields.
_NEUTRAL = {"temperature": 0.0, "top_p": 1.0}
#: How similar a field of ``/generate`` must be to an input's name to be taken for a misspelt one.
_SIMILAR = 0.8
#: Fields of ``/generate`` that are no inputs, all together.
_MAX_PARAMETERS = 64
_MAX_PARAMETER_BYTES = 1 << 16
#: Bytes of a text that is a name.
_MAX_NAME_BYTES = 256
_LARGEST_TIMEOUT = 1 << 62
#: Signals that a request may name.
_MAX_SIGNALS = 16
_MAX_BANNED_TOKENS = 1024
#: Beyond this a weight leaves no digit of the logits.
_LARGEST_WEIGHT = 1e6


@dataclasses.dataclass(frozen=True)
class ServedRequest:
    """A request as a client asked for it.

    Args:
        request: What to generate.
        stream: Whether every token is a response, or all of them together.
        return_candidates: Whether responses have the candidates.
        deadline_seconds: None for none.
    """

    request: Request
    stream: bool
    return_candidates: bool
    deadline_seconds: float | None


def parse_request(
    tensors: Mapping[str, npt.NDArray[Any] | None],
    settings: Settings,
    *,
    parameters: Mapping[str, Any] | None = None,
    timeout_microseconds: int = 0,
) -> ServedRequest:
    """Check a request and build it.

    Args:
        tensors: By the names of `INPUTS`; None or left out where the client sent none.
        settings: Limits and defaults.
        parameters: Triton's request parameters: for ``/generate`` all fields that are no inputs.
        timeout_microseconds: Triton's own timeout of the request; 0 for none.

    Raises:
        RequestError: A tensor or an option is not valid.
        UnsupportedError: There is no such method.
    """
    given = dict(parameters or {})
    arrays = {field: array for field in INPUTS if (array := tensors.get(field.name)) is not None}
    # Sizes come first: what is too large is neither decoded nor compared with anything.
    for field, array in arrays.items():
        _check_size(field, array, settings)
    _check_parameters(given)
    values = {field.name: _read(field, array) for field, array in arrays.items()}
    request = Request(
        _prompt(values, settings),
        _method(values, settings),
        max_tokens=values.get("max_tokens", settings.default_max_tokens),
        stop=_stop_words(values.get("stop_words", []), settings),
        seed=values.get("seed"),
        penalties=Penalties(**{k: values[k] for k in PENALTIES if k in values}),
        drafts=values.get("drafts", NONE),
        rewards_from=0 if values.get("return_rewards") else None,
    )
    return ServedRequest(
        request,
        values.get("stream", False),
        values.get("return_candidates", False),
        _deadline(values.get("deadline_ms"), timeout_microseconds, given, settings),
    )


def read_parameters(text: str) -> dict[str, Any]:
    """Triton's request parameters from their JSON.

    Raises:
        RequestError: They are too large, or no object.
        EngineError: They are no JSON that can be read.
    """
    if len(text) > _MAX_PARAMETER_BYTES:
        raise RequestError(
            f"fields that are no inputs have {len(text)} bytes together; at most "
            f"{_MAX_PARAMETER_BYTES} are accepted"
        )
    try:
        parameters = json.loads(text)
    except (ValueError, RecursionError) as error:
        # Triton writes them itself, from what it could read.
        raise EngineError(f"the request parameters cannot be read: {error}") from None
    if not isinstance(parameters, dict):
        raise RequestError(f"the request parameters must be an object, got {quoted(parameters)}")
    return parameters


def _check_size(field: TensorField, array: npt.NDArray[Any], settings: Settings) -> None:
    """Refuse too many values, or too long ones, by their sizes alone."""
    name, count = field.name, array.size
    # A token is a byte at least. Empty stop words do not count later, but they are read.
    most = {
        "input_ids": settings.max_prompt_bytes,
        "stop_words": 4 * settings.max_stop_words,
        "weights": _MAX_SIGNALS,
        "minimum": _MAX_SIGNALS,
        "banned_tokens": _MAX_BANNED_TOKENS,
    }
    if field.many and count > most[name]:
        raise RequestError(f"there are {count} {name}; at most {most[name]} are accepted")
    if field.data_type != "STRING" or array.dtype != np.object_ or (not field.many and count != 1):
        return
    limits = {"text_input": settings.max_prompt_bytes, "stop_words": settings.max_stop_bytes}
    limit = limits.get(name, _MAX_NAME_BYTES)
    for value in array.reshape(-1):
        size = len(value) if isinstance(value, str | bytes) else 0
        if size > limit:
            what = "a stop word" if name == "stop_words" else name
            raise RequestError(f"{what} has {size} bytes; at most {limit} are accepted")


def _check_parameters(parameters: Mapping[str, Any]) -> None:
    """Refuse what looks like a misspelt input, which Triton passes on as a parameter."""
    if len(parameters) > _MAX_PARAMETERS:
        raise RequestError(
            f"there are {len(parameters)} fields that are no inputs; at most {_MAX_PARAMETERS} "
            "are accepted"
        )
    for name in parameters:
        if name in INPUT_NAMES:
            raise RequestError(f"{name} came as a request parameter; send it as an input tensor")
        near = nearest(name, INPUT_NAMES, _SIMILAR)
        if near:
            raise RequestError(f"there is no input {quoted(name)}; did you mean {near}?")


def _read(field: TensorField, array: npt.NDArray[Any]) -> Any:
    """One value, or a list if the field may have many."""
    if array.dtype != NUMPY_TYPES[field.data_type]:
        raise RequestError(
            f"{field.name} must be of type {field.data_type}, got {array.dtype} values"
        )
    if not field.many and array.size != 1:
        raise RequestError(f"{field.name} must hold one value, got shape {list(array.shape)}")
    values = [_value(field, value) for value in array.reshape(-1)]
    return values if field.many else values[0]


def _value(field: TensorField, value: Any) -> Any:
    if field.data_type == "STRING":
        return _text(field.name, value)
    if field.data_type == "FP32":
        # A client that writes 0.7 means 0.7, and not the nearest float32 with sixteen digits.
        return float(str(np.float32(value)))
    return value.item()


def _text(name: str, value: Any) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise RequestError(f"{name} must hold text, got {quoted(value)}")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{name} is not UTF-8: byte {error.start} cannot be decoded") from None


def _prompt(values: Mapping[str, Any], settings: Settings) -> str | list[int]:
    text, ids = values.get("text_input"), values.get("input_ids")
    if text is None and ids is None:
        raise RequestError("the prompt is missing; send text_input or input_ids")
    if text is not None and ids is not None:
        raise RequestError("there are both text_input and input_ids; send one of them")
    if text is None:
        if not ids:
            raise RequestError("input_ids is empty; send at least one token id")
        return list(ids)
    size = len(text.encode("utf-8"))
    if size > settings.max_prompt_bytes:
        raise RequestError(
            f"text_input has {size} bytes; at most {settings.max_prompt_bytes} are accepted"
        )
    return str(text)


def _stop_words(words: list[str], settings: Settings) -> tuple[str, ...]:
    # Clients of other models send one empty text for "none".
    kept = [word for word in words if word]
    if len(kept) > settings.max_stop_words:
        raise RequestError(
            f"there are {len(kept)} stop_words; at most {settings.max_stop_words} are accepted"
        )
    longest = max((len(word.encode("utf-8")) for word in kept), default=0)
    if longest > settings.max_stop_bytes:
        raise RequestError(
            f"a stop word has {longest} bytes; at most {settings.max_stop_bytes} are accepted"
        )
    return tuple(kept)


def _method(values: Mapping[str, Any], settings: Settings) -> DecodingMethod:
    options = {name: values[name] for name in METHOD_OPTIONS if name in values}
    for option in ("weights", "minimum"):
        if not options.get(option, True):
            del options[option]
        elif option in options:
            options[option] = named_numbers(option, options[option])
    given = {"reward_weight": options.get("reward_weight", 0.0)}
    given |= {f"weight of {name}": w for name, w in options.get("weights", {}).items()}
    largest = f"{_LARGEST_WEIGHT:g}"
    for name, weight in given.items():
        # NaN compares as False, so it is refused here as well.
        if not abs(weight) <= _LARGEST_WEIGHT:
            raise RequestError(f"{name} must be from -{largest} to {largest}, got {weight!r}")
    if "weights" in options and "reward_weight" in options:
        raise RequestError("there are both reward_weight and weights; send one of them")
    name = values.get("method", settings.default_method)
    chosen = _automatic(options) if name == AUTO else name
    accepted = method_options(chosen)
    for option, neutral in _NEUTRAL.items():
        if option not in accepted and (options.get(option) == neutral or name == AUTO):
            options.pop(option, None)
    foreign = [option for option in options if METHOD_OPTIONS[option] not in accepted]
    if foreign:
        taken = [o for o, own in METHOD_OPTIONS.items() if own in accepted]
        raise RequestError(
            f"method {chosen} does not take {listed(foreign)}; it takes {', '.join(taken)}"
        )
    defaults = _defaults(chosen, accepted, settings)
    if "weights" in options:
        defaults.pop("weight", None)
    return make_method(chosen, {**defaults, **_renamed(options)})


def _automatic(options: Mapping[str, Any]) -> str:
    """Sampling for those who ask for it; a temperature of 0 is how clients ask for the best."""
    temperature = options.get("temperature", 1.0 if options.get("top_p", 1.0) != 1 else 0.0)
    return "args-greedy" if temperature == 0 else "args-stochastic"


def _defaults(method: str, accepted: tuple[str, ...], settings: Settings) -> dict[str, Any]:
    """Defaults of guided methods; where k is not limited by itself, a limit would change it."""
    if method not in METHODS or "weight" not in accepted:
        return {}
    found = {"weight": settings.default_reward_weight, "gate": settings.default_gate}
    limited = METHODS.load(method)().candidate_count is not None
    return {**found, "top_k": settings.default_top_k} if limited else found


def _renamed(options: Mapping[str, Any]) -> dict[str, Any]:
    return {METHOD_OPTIONS[name]: value for name, value in options.items()}


def _deadline(
    deadline_ms: int | None,
    timeout_microseconds: int,
    parameters: Mapping[str, Any],
    settings: Settings,
) -> float | None:
    """The earliest of the deadline, the timeout and the default, in seconds."""
    if deadline_ms is not None and deadline_ms < 1:
        raise RequestError(f"deadline_ms must be at least 1, got {deadline_ms}")
    # Triton takes a timeout of gRPC and of /infer as its own, that of /generate as a parameter.
    given = parameters.get("timeout", 0)
    timeout = as_integer(given)
    if timeout is None or not 0 <= timeout <= _LARGEST_TIMEOUT:
        raise RequestError(f"timeout must be a number of microseconds, got {quoted(given)}")
    milliseconds = deadline_ms or settings.default_deadline_ms
    limits = [milliseconds / 1e3, timeout_microseconds / 1e6, timeout / 1e6]
    return min((limit for limit in limits if limit > 0), default=None)
