"""L0: from tensors to requests: defaults, the choice of a method, and one error per mistake."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from otter_export import ArgsGreedy, ArgsStochastic, Experts, Penalties, Plain
from otter_export.errors import EngineError, OtterError, RequestError
from otter_export.serving.parsing import ServedRequest, parse_request, read_parameters
from otter_export.serving.settings import Settings
from otter_export.serving.tensors import INPUTS, NUMPY_TYPES
from tests.serving.conftest import arrays

SETTINGS = Settings(default_top_k=5, default_reward_weight=2.0, default_max_tokens=9)


def parse(fields: dict[str, Any], **more: Any) -> ServedRequest:
    return parse_request(arrays({"text_input": "hi", **fields}), SETTINGS, **more)


def test_defaults() -> None:
    served = parse({})
    assert served.request.prompt == "hi"
    assert served.request.method == ArgsGreedy(top_k=5, weight=2.0)
    assert (served.request.max_tokens, served.request.stop, served.request.seed) == (9, (), None)
    assert (served.stream, served.return_candidates, served.deadline_seconds) == (
        False,
        False,
        None,
    )


METHODS = [
    ({"reward_weight": -3.0, "top_k": 2}, ArgsGreedy(weight=-3.0, top_k=2)),
    ({"gate": 1.5}, ArgsGreedy(gate=1.5, top_k=5, weight=2.0)),
    (
        {"gate": 0.1, "temperature": 0.7},
        ArgsStochastic(gate=0.1, temperature=0.7, top_k=5, weight=2.0),
    ),
    ({"temperature": 0.7}, ArgsStochastic(temperature=0.7, top_k=5, weight=2.0)),
    ({"temperature": 0.0}, ArgsGreedy(top_k=5, weight=2.0)),
    # What the OpenAI frontend sends if its client says nothing, and if it wants the best.
    ({"temperature": 1.0, "top_p": 1.0}, ArgsStochastic(top_k=5, weight=2.0)),
    ({"temperature": 0.0, "top_p": 0.3}, ArgsGreedy(top_k=5, weight=2.0)),
    ({"top_p": 0.5}, ArgsStochastic(top_p=0.5, top_k=5, weight=2.0)),
    ({"method": "plain"}, Plain()),
    ({"method": "plain", "temperature": 0.3, "top_k": 3}, Plain(temperature=0.3, top_k=3)),
    ({"method": "args-greedy", "temperature": 0.0, "top_p": 1.0}, ArgsGreedy(top_k=5, weight=2.0)),
    ({"signal": "kindness"}, ArgsGreedy(top_k=5, weight=2.0, signal="kindness")),
    ({"frequency_penalty": 0.0, "presence_penalty": 0.0}, ArgsGreedy(top_k=5, weight=2.0)),
    (
        {"weights": ["kind=1", "dull=-0.5"], "minimum": ["kind=0.25"]},
        ArgsGreedy(weights={"kind": 1.0, "dull": -0.5}, minimum={"kind": 0.25}, top_k=5),
    ),
    ({"weights": [], "minimum": []}, ArgsGreedy(top_k=5, weight=2.0)),
    # Its tokens are limited by top_p: the default of top_k would change what it is.
    ({"method": "experts", "top_p": 0.8}, Experts(top_p=0.8, weight=2.0)),
]


@pytest.mark.parametrize(("fields", "method"), METHODS)
def test_method(fields: dict[str, Any], method: object) -> None:
    assert parse(fields).request.method == method


def test_the_default_gate_is_that_of_guided_methods() -> None:
    settings = dataclasses.replace(SETTINGS, default_gate=0.75)
    for fields, gate in (({}, 0.75), ({"temperature": 0.7}, 0.75), ({"gate": 0.0}, 0.0)):
        method = parse_request(arrays({"text_input": "hi", **fields}), settings).request.method
        assert method.gate == gate  # type: ignore[attr-defined]
    plain = arrays({"text_input": "hi", "method": "plain"})
    assert parse_request(plain, settings).request.method == Plain()


def test_numbers_are_those_that_the_client_wrote() -> None:
    # The nearest float32 to 0.1 is 0.100000001490116...
    assert parse({"reward_weight": 0.1}).request.method == ArgsGreedy(top_k=5, weight=0.1)


def test_other_fields() -> None:
    served = parse(
        {
            "stream": True,
            "return_candidates": True,
            "stop_words": ["", "\n\n", "ü"],
            "seed": 2**64 - 1,
            "max_tokens": 3,
            "drafts": "auto",
        }
    )
    assert served.request.drafts == "auto"
    assert (served.stream, served.return_candidates) == (True, True)
    assert served.request.stop == ("\n\n", "ü")
    assert (served.request.seed, served.request.max_tokens) == (2**64 - 1, 3)
    ids = parse_request(arrays({"input_ids": [5, 6]}), SETTINGS).request.prompt
    assert ids == [5, 6] and all(type(i) is int for i in ids)


def test_penalties() -> None:
    assert parse({}).request.penalties == Penalties()
    fields = {
        "repetition_penalty": 1.2,
        "presence_penalty": -0.5,
        "frequency_penalty": 0.1,
        "banned_tokens": [5, 6],
        "min_tokens": 3,
    }
    penalties = parse(fields).request.penalties
    assert penalties == Penalties(**{**fields, "banned_tokens": (5, 6)})


def test_the_earliest_deadline_counts() -> None:
    assert parse({"deadline_ms": 1500}).deadline_seconds == 1.5
    assert parse({"deadline_ms": 1500}, timeout_microseconds=200_000).deadline_seconds == 0.2
    assert parse({}, parameters={"timeout": 70_000}).deadline_seconds == 0.07
    settings = dataclasses.replace(SETTINGS, default_deadline_ms=800)
    assert parse_request(arrays({"text_input": "a"}), settings).deadline_seconds == 0.8


BAD = [
    ({"text_input": None}, "the prompt is missing"),
    ({"input_ids": [1]}, "both text_input and input_ids"),
    ({"text_input": None, "input_ids": []}, "input_ids is empty"),
    ({"text_input": np.array([[b"\xff\xfe"]], object)}, "text_input is not UTF-8: byte 0"),
    ({"text_input": np.array([[b"\xed\xa0\x80"]], object)}, "text_input is not UTF-8"),
    ({"text_input": np.array([[b"a", b"b"]], object)}, "must hold one value, got shape [1, 2]"),
    ({"text_input": np.zeros((1, 0), object)}, "must hold one value, got shape [1, 0]"),
    ({"text_input": np.array([[1]])}, "text_input must be of type STRING, got int64"),
    ({"text_input": "x" * (SETTINGS.max_prompt_bytes + 1)}, "at most 1048576 are accepted"),
    ({"stop_words": np.array([[b"\xc3"]], object)}, "stop_words is not UTF-8"),
    ({"stop_words": ["a"] * 17}, "17 stop_words; at most 16"),
    ({"stop_words": ["ü" * 129]}, "a stop word has 258 bytes; at most 256"),
    ({"text_input": np.array([[None]], object)}, "text_input must hold text, got None"),
    ({"text_input": np.array([[10**9]], object)}, "text_input must hold text, got 1000000000"),
    ({"stop_words": ["a"] * 65}, "there are 65 stop_words; at most 64"),
    ({"method": "m" * 257}, "method has 257 bytes; at most 256 are accepted"),
    ({"signal": "s" * 10_000_000}, "signal has 10000000 bytes; at most 256 are accepted"),
    ({"text_input": np.array([[b"x" * 9] * 9999], object)}, "hold one value, got shape [1, 9999]"),
    ({"max_tokens": 0}, "max_tokens must be an integer of at least 1"),
    ({"max_tokens": -(2**31)}, "max_tokens must be an integer of at least 1"),
    ({"top_k": 0}, "top_k must be an integer from 1"),
    ({"reward_weight": float("nan")}, "reward_weight must be from -1e+06 to 1e+06, got nan"),
    ({"reward_weight": float("inf")}, "reward_weight must be from -1e+06 to 1e+06, got inf"),
    ({"reward_weight": -3e38}, "reward_weight must be from"),
    ({"gate": -0.5}, "gate must be a finite number at least 0, got -0.5"),
    ({"gate": float("nan")}, "gate must be a finite number at least 0, got nan"),
    ({"gate": float("inf")}, "gate must be a finite number at least 0, got inf"),
    ({"method": "plain", "gate": 1.0}, "plain does not take gate; it takes"),
    ({"temperature": -0.5}, "temperature must be a finite number above 0"),
    ({"temperature": float("nan")}, "temperature must be a finite number above 0, got nan"),
    ({"top_p": 0.0}, "top_p must be a finite number above 0"),
    ({"top_p": 1.5}, "top_p must be a finite number above 0 and at most 1"),
    ({"method": "nucleus"}, "unknown method 'nucleus'"),
    ({"method": ""}, "unknown method ''"),
    ({"method": "args-greedy", "temperature": 0.7}, "args-greedy does not take temperature"),
    ({"method": "plain", "reward_weight": 1.0}, "plain does not take reward_weight; it takes"),
    ({"signal": ""}, "signal must be the name of a signal"),
    ({"deadline_ms": 0}, "deadline_ms must be at least 1, got 0"),
    ({"frequency_penalty": 2.5}, "frequency_penalty must be a finite number at least -2 and at mo"),
    ({"presence_penalty": float("nan")}, "presence_penalty must be a finite number at least -2"),
    ({"repetition_penalty": 0.0}, "repetition_penalty must be a finite number at least 0.01"),
    ({"banned_tokens": [-1]}, "banned_tokens must be token ids, 0 or more each, got [-1]"),
    ({"banned_tokens": [1] * 1025}, "there are 1025 banned_tokens; at most 1024 are accepted"),
    ({"min_tokens": -1}, "min_tokens must be an integer of at least 0"),
    ({"weights": ["reward"]}, "weights must be NAME=NUMBER, such as reward=1.5, got ['reward']"),
    ({"weights": ["a=1e7"]}, "weight of a must be from -1e+06 to 1e+06"),
    ({"weights": ["a=1"] * 17}, "there are 17 weights; at most 16 are accepted"),
    ({"weights": ["a=1"], "reward_weight": 1.0}, "both reward_weight and weights; send one"),
    ({"weights": ["a=1"], "signal": "a"}, "leave signal and weight out"),
    ({"minimum": ["=1"]}, "minimum must be NAME=NUMBER, such as reward=1.5"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=[message for _, message in BAD])
def test_a_mistake_has_one_clear_error(fields: dict[str, Any], message: str) -> None:
    given = {"text_input": "hi", **fields}
    tensors: dict[str, Any] = {k: v for k, v in given.items() if isinstance(v, np.ndarray)}
    tensors |= arrays({k: v for k, v in given.items() if k not in tensors and v is not None})
    with pytest.raises(OtterError) as caught:
        parse_request(tensors, SETTINGS)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


@pytest.mark.parametrize("name", ["max_token", "Top_K", "text-input", "reward_wieght"])
def test_a_misspelt_field_of_generate_is_not_silently_left_out(name: str) -> None:
    with pytest.raises(RequestError, match="did you mean"):
        parse({}, parameters={name: 3})


def test_an_input_is_not_a_parameter() -> None:
    with pytest.raises(RequestError, match="method came as a request parameter; send it as an"):
        parse({}, parameters={"method": "plain"})


def test_parameters_of_triton_and_of_proxies_pass() -> None:
    parse({}, parameters={"priority": 1, "id": "a", "x-request-id": "b", "sequence_id": 3})


@pytest.mark.parametrize(
    ("tensors", "parameters", "message"),
    [
        ({"input_ids": np.zeros((1, 10_000_000), np.int64)}, {}, "10000000 input_ids; at most 10"),
        (
            {"text_input": np.array([[b"x" * 50_000_000]], object)},
            {},
            "has 50000000 bytes; at most",
        ),
        ({}, {f"max_tokens{i}": i for i in range(100_000)}, "100000 fields that are no inputs"),
        ({}, {"temperature" * 5_000_000: 1}, None),
    ],
)
def test_what_is_too_large_is_refused_at_once(
    tensors: dict[str, Any], parameters: dict[str, Any], message: str | None
) -> None:
    started = time.perf_counter()
    given = {**arrays({} if tensors else {"text_input": "hi"}), **tensors}
    if message is None:
        parse_request(given, SETTINGS, parameters=parameters)
    else:
        with pytest.raises(RequestError, match=message):
            parse_request(given, SETTINGS, parameters=parameters)
    assert time.perf_counter() - started < 1.0


def test_parameters_are_measured_before_they_are_read() -> None:
    assert read_parameters('{"timeout": 3}') == {"timeout": 3}
    with pytest.raises(RequestError, match="have 70002 bytes together; at most 65536"):
        read_parameters("[" * 70_002)
    with pytest.raises(RequestError, match=r"must be an object, got \[\]"):
        read_parameters("[]")
    for text in ("{", "[" * 5000, "1" * 5000):
        with pytest.raises(EngineError, match="the request parameters cannot be read"):
            read_parameters(text)


@pytest.mark.parametrize("timeout", [-1, "soon", 1.5, True, 10**400])
def test_a_timeout_is_microseconds(timeout: object) -> None:
    with pytest.raises(RequestError, match="timeout must be a number of microseconds"):
        parse({}, parameters={"timeout": timeout})


@st.composite
def hostile(draw: st.DrawFn) -> dict[str, np.ndarray[Any, Any]]:
    """Any tensors of the declared types and any shapes."""
    tensors = {}
    for field in draw(st.lists(st.sampled_from(INPUTS), unique=True)):
        size = draw(st.integers(0, 3))
        if field.data_type == "STRING":
            values = draw(st.lists(st.binary(max_size=8), min_size=size, max_size=size))
            tensors[field.name] = np.array([values], dtype=object).reshape(1, size)
        else:
            raw = draw(st.binary(min_size=8 * size, max_size=8 * size))
            dtype = np.dtype(NUMPY_TYPES[field.data_type])
            if field.data_type == "BOOL":
                raw = bytes(b & 1 for b in raw)
            tensors[field.name] = np.frombuffer(raw, dtype)[:size].reshape(1, size)
    return tensors


@hypothesis.given(hostile())
def test_any_tensors_give_a_request_or_an_error_of_ours(
    tensors: dict[str, np.ndarray[Any, Any]],
) -> None:
    try:
        served = parse_request(tensors, SETTINGS)
    except OtterError as error:
        assert "\n" not in str(error)
    else:
        assert served.request.max_tokens >= 1
