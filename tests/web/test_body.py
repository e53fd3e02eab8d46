"""L0: bodies of requests: what is wrong is one error, whatever it is."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_export.chat_template import ChatTemplate
from otter_export.errors import OtterError, RequestError
from otter_export.serving.settings import Settings
from otter_export.serving.tensors import INPUT_NAMES
from otter_export.web.body import FieldError, chat_call, completion_call, read_object
from tests.runtime.fake_engine import ByteTokenizer


class ChatTokenizer(ByteTokenizer):
    chat_template = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {})

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())


SETTINGS = Settings(max_prompt_bytes=100)
USER = {"role": "user", "content": "hi"}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [*INPUT_NAMES, "prompt", "messages", "stop", "n", "logit_bias", "tools", "stream_options"]
)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"3", b"null", b'"a"', b"\xff", b"[" * 100_000, b'{"a":' * 100_000],
)
def test_what_is_no_object(content: bytes) -> None:
    with pytest.raises(RequestError, match="the body"):
        read_object(content)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt", None, "prompt must be one text, or the token ids of one, got None"),
        ("prompt", ["a", "b"], "prompt must be one text"),
        ("prompt", [], "prompt must be one text"),
        ("prompt", 3, "prompt must be one text"),
        ("prompt", [1.5], "prompt must be an integer from"),
        ("prompt", [True], "prompt must be an integer from"),
        ("prompt", [1 << 70], "prompt must be an integer from"),
        ("prompt", "\ud800", "prompt is not valid Unicode"),
        ("max_tokens", "8", "max_tokens must be an integer from"),
        ("max_tokens", 1 << 40, "max_tokens must be an integer from"),
        ("max_tokens", [8], "max_tokens must be an integer from"),
        ("temperature", "hot", "temperature must be a number, got 'hot'"),
        ("temperature", True, "temperature must be a number, got True"),
        ("temperature", 10**400, "temperature must be a number"),
        ("stream", 1, "stream must be true or false, got 1"),
        ("stop", [1], "stop must be text, or a list of them, got 1"),
        ("weights", {"reward": 1}, "weights must be text, or a list of them"),
        ("seed", -1, "seed must be an integer from 0"),
        ("n", 2, "n may only be 1 here, or left out, got 2"),
        ("n", True, "n may only be 1 here"),
        ("logprobs", 5, "logprobs may only be false or 0 here"),
        ("tools", [{}], r"tools may only be \[\] here"),
        ("response_format", {"type": "json_object"}, "response_format may only be"),
        ("stream_options", {"x": 1}, "stream_options may have include_usage alone"),
        ("stream_options", [], "stream_options may have include_usage alone"),
        ("text_input", "a", "there is no field 'text_input'"),
        ("stop_words", "a", "there is no field 'stop_words'"),
        ("messages", [USER], "there is no field 'messages'"),
        ("max_completion_tokens", 3, "there are both max_tokens and max_completion_tokens"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(FieldError, match=message) as caught:
        completion_call({"prompt": "a", "max_tokens": 4, field: value}, SETTINGS)
    assert caught.value.field == ("max_tokens" if field == "max_completion_tokens" else field)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"prompt": "x" * 101}, "text_input has 101 bytes; at most 100"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"max_tokens": 0}, "max_tokens must be"),
        ({"method": "best"}, "unknown method 'best'"),
        ({"top_k": 0}, "top_k must be"),
        ({"stop": ["x"] * 17}, "there are 17 stop_words"),
        ({"reward_weight": 1, "weights": ["a=1"]}, "both reward_weight and weights"),
        ({"method": "plain", "reward_weight": 2}, "method plain does not take reward_weight"),
        ({"deadline_ms": 0}, "deadline_ms must be at least 1"),
    ],
)
def test_values_have_the_limits_of_triton(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(OtterError, match=message):
        completion_call({"prompt": "a", **fields}, SETTINGS)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "messages must be a list of at least one, got None"),
        ([], "messages must be a list of at least one"),
        ("hi", "messages must be a list of at least one"),
        ([3], "message 1 must be like"),
        ([{"role": "tool", "content": "x"}], "role must be one of"),
        ([{**USER, "tool_calls": [{}]}], "message 1 has tool_calls"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "content must be text"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "content must be text"),
        ([{"role": "user", "content": "x" * 101}], "messages have 101 bytes; at most 100"),
        ([USER, {"role": "assistant", "content": "x"}], "end with one of role user"),
    ],
)
def test_wrong_messages(messages: Any, message: str) -> None:
    with pytest.raises(FieldError, match=message) as caught:
        chat_call({"messages": messages}, SETTINGS, ChatTokenizer())
    assert caught.value.field == "messages"


def test_what_says_nothing_is_left_out() -> None:
    body = {"prompt": "a", "stop": None, "n": None, "temperature": None, "user": "x", "model": "m"}
    call = completion_call(body, SETTINGS)
    assert call.served.request.max_tokens == SETTINGS.default_max_tokens
    assert not call.served.stream and not call.include_usage


@settings(max_examples=300)
@given(st.dictionaries(NAMES, JSON, max_size=4))
def test_whatever_comes_is_a_call_or_one_line(fields: dict[str, Any]) -> None:
    body = {"prompt": "a", **fields}
    for read in (completion_call, lambda b, s: chat_call(b, s, ChatTokenizer())):
        try:
            read(json.loads(json.dumps(body)), SETTINGS)
        except OtterError as error:
            assert "\n" not in str(error)
        body = {"messages": [USER], **fields}
