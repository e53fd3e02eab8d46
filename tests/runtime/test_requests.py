"""L4: requests and prompt files that are wrong, each with its one-line error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_export import (
    ArgsGreedy,
    ArgsStochastic,
    Experts,
    Penalties,
    Plain,
    Request,
    Result,
    generate,
    load_engine,
    stream,
)
from otter_export.errors import EngineError, OtterError, RequestError
from otter_export.runtime import prompt_file
from otter_export.runtime.prompt_file import Defaults, read_prompts
from otter_export.signals import Signal
from tests.runtime.fake_engine import ByteTokenizer, FakeEngine, make_manifest


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": 3}, "a prompt must be text or a sequence of token ids, got 3"),
        ({"prompt": None}, "a prompt must be text or a sequence"),
        ({"prompt": [1, 2.5]}, "a prompt must be text or a sequence of token ids"),
        ({"prompt": [True]}, "a prompt must be text or a sequence of token ids"),
        ({"prompt": b"text"}, "a prompt must be text or a sequence of token ids"),
        ({"prompt": "a\udcff"}, "not valid Unicode: character 1"),
        ({"method": "args-greedy"}, r"method must be a decoding method such as ArgsGreedy\(\)"),
        ({"method": ArgsGreedy}, "method must be a decoding method"),
        ({"max_tokens": 0}, "max_tokens must be an integer of at least 1, got 0"),
        ({"max_tokens": 1.0}, "max_tokens must be an integer of at least 1, got 1.0"),
        ({"max_tokens": True}, "max_tokens must be an integer"),
        ({"seed": -1}, r"seed must be an integer from 0 to 2\*\*64 - 1, got -1"),
        ({"seed": 1 << 64}, "seed must be an integer"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"penalties": {}}, r"penalties must be Penalties\(\.\.\.\) such as"),
        ({"stop": ("",)}, "stop must be texts of at least one character"),
        ({"stop": ("a", 3)}, "stop must be texts of at least one character"),
        ({"stop": 7}, "stop must be texts"),
        ({"stop": "a\udcff"}, "a stop word is not valid Unicode: character 1"),
        pytest.param({"max_tokens": 10**5000}, "got an integer of about 5001 digits", id="digits"),
        pytest.param({"prompt": [1.5] * 9999}, r"got \[1.5, 1.5, 1.5, .*\.\.\.\]", id="long"),
    ],
)
def test_wrong_requests(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        Request(**{"prompt": "a", **arguments})
    assert "\n" not in str(caught.value)


def engine(**options: Any) -> FakeEngine:
    return FakeEngine(make_manifest(max_sequence_length=16, **options))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generate(engine(), ""), "the prompt is empty, and this model has no beginning"),
        (lambda: generate(engine(), Request([])), "the prompt is empty"),
        (lambda: generate(engine(), Request([256])), "token id 256; the engine's vocabulary is 0"),
        (lambda: generate(engine(), Request([-1])), "token id -1"),
        (lambda: generate(engine(), "a" * 16), "has 16 tokens; the engine takes at most 15"),
        (lambda: generate(engine(), ["a", "a" * 99]), "prompt 2 of 2: the prompt has 99 tokens"),
        (
            lambda: generate(engine(), "a", ArgsGreedy(top_k=257)),
            "top_k must be an integer from 1 to the vocabulary size 256, got 257",
        ),
        (
            lambda: generate(engine(), "a", Plain(top_k=300, temperature=1.0)),
            "vocabulary size 256, got 300",
        ),
        (
            lambda: generate(engine(), "a", ArgsStochastic(signal="joy")),
            "no signal 'joy'; its signals: reward",
        ),
        (
            lambda: generate(engine(signals=(Signal("draft", kind="medusa"),)), "a"),
            r"needs a signal of kind value or q_value; the engine's signals: draft \(medusa\)",
        ),
        (
            lambda: generate(
                engine(signals=(Signal("reward"), Signal("tilt", kind="medusa"))),
                "a",
                ArgsGreedy(signal="tilt"),
            ),
            r"asked for tilt; the engine's signals: reward \(value\), tilt \(medusa\)",
        ),
        (
            lambda: generate(engine(), "a", Experts()),
            r"method experts needs a signal of kind expert; the engine's signals: reward \(value\)",
        ),
        (
            lambda: generate(engine(), "a", Experts(signal="reward")),
            r"experts scores all tokens, and a signal of kind value \(reward\) only those",
        ),
        (
            lambda: generate(engine(), "a", ArgsGreedy(weights={"reward": 1, "joy": 2})),
            "no signal 'joy'; its signals: reward",
        ),
        (
            lambda: generate(engine(), "a", ArgsGreedy(minimum={"joy": 2})),
            "no signal 'joy'; its signals: reward",
        ),
        (
            lambda: generate(engine(), "a", penalties=Penalties(banned_tokens=(3, 256))),
            "banned_tokens has token id 256; the engine's vocabulary is 0 to 255",
        ),
        (lambda: generate(engine(), 5), "prompts must be texts or requests, got 5"),
        (lambda: generate(engine(), "a", batch_size=0), "batch_size must be an integer of at"),
        (lambda: stream(engine(), [Request("a")], batch_size=-1), "batch_size must be an integer"),
        (lambda: stream(engine(), [Request("")]), "the prompt is empty"),
        (lambda: stream("dir", "a"), "engine must be one that load_engine returned, got 'dir'"),
        (lambda: stream(engine(), None), "prompts must be texts or requests, got None"),
        (lambda: generate(engine(), b"abc"), "prompts must be texts or requests, got b'abc'"),
        (lambda: generate(engine(), [], max_tokens=0), "max_tokens must be an integer of at least"),
        (lambda: generate(engine(), "a", on_event=3), "on_event must be a function or None, got 3"),
        (lambda: generate(engine(), Request([10**5000])), "token id an integer of about 5001 dig"),
        (lambda: load_engine(3), "directory must be a path, as text or pathlib.Path, got 3"),
        (lambda: load_engine("x", threads="2"), "threads must be an integer from 1 to 1024, got"),
        (lambda: load_engine("x", provider=[]), r"provider must be one of cpu, cuda, got \[\]"),
    ],
)
def test_requests_that_do_not_fit_the_engine(call: Any, message: str) -> None:
    with pytest.raises((RequestError, EngineError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("field", ["prompt", "stop"])
def test_texts_are_bounded_before_they_are_tokenized(field: str) -> None:
    text = "w" * ((4 << 20) + 1)
    with pytest.raises(RequestError, match="has 4194305 characters; at most 4194304 are read"):
        Request(**{"prompt": "w3", field: text})


def test_numbers_of_numpy_are_as_good_as_pythons() -> None:
    method = ArgsStochastic(
        top_k=np.int64(3), weight=np.float32(2), temperature=np.float64(0.5), top_p=np.float16(1)
    )
    assert method == ArgsStochastic(top_k=3, weight=2.0, temperature=0.5, top_p=1.0)
    assert type(method.top_k) is int and type(method.weight) is float
    request = Request(np.array([97, 98]), max_tokens=np.int32(2), seed=np.uint64(2**64 - 1))
    assert request == Request([97, 98], max_tokens=2, seed=2**64 - 1)
    assert Request([np.int64(97), 98]).prompt == [97, 98]
    assert len(generate(engine(), request, batch_size=np.int8(1))[0].token_ids) == 2


def test_texts_and_none_are_as_good_as_lists() -> None:
    assert Request("a", stop=None).stop == ()
    assert Request("a", stop="xy").stop == ("xy",)
    expected = generate(engine(), "a", max_tokens=3, stop=None)[0].token_ids
    for prompts in ("a", ["a"], Request("a", max_tokens=3)):
        items = list(stream(engine(), prompts, max_tokens=3))
        assert isinstance(items[-1], Result)
        assert items[-1].token_ids == expected


def test_a_special_token_stops_the_generation() -> None:
    tokens = ByteTokenizer(special=[0, 1])
    script = {1: ord("b"), 2: 1, 3: ord("c")}
    result = generate(
        FakeEngine(script=script, tokenizer=tokens), "xa", Plain(), max_tokens=9, stop="<1>"
    )[0]
    assert (result.text, result.token_ids, result.finish_reason) == ("b", (98, 1), "stop")


def test_a_beginning_in_the_prompt_is_not_doubled(caplog: pytest.LogCaptureFixture) -> None:
    class Beginning(ByteTokenizer):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [1, *super().encode(text)]

    manifest = make_manifest(bos_token_id=1)
    adding = FakeEngine(manifest, tokenizer=Beginning())
    for prompt, ids in (("a", (1, 97)), ("\1a", (1, 97)), ("\1\1a", (1, 1, 97)), ("", (1,))):
        assert generate(adding, prompt, max_tokens=1)[0].prompt_ids == ids
    assert len(caplog.records) == 2
    # What the tokenizer does not add is the user's own, and so are token ids.
    plain = FakeEngine(manifest, tokenizer=ByteTokenizer())
    assert generate(plain, "\1\1a", max_tokens=1)[0].prompt_ids == (1, 1, 97)
    assert generate(adding, Request([1, 1, 97], max_tokens=1))[0].prompt_ids == (1, 1, 97)


def test_the_methods_that_have_an_option_are_named() -> None:
    with pytest.raises(
        RequestError, match=r"methods that have it: args-stochastic, experts, plain$"
    ):
        Defaults(options={"temperature": 0.7}).request_for("a")


def test_prompts_may_have_marks_and_line_ends_of_windows(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n{"prompt": "b"}\r\n')
    assert [request.prompt for request in read_prompts(str(path), Defaults())] == ["a", "b"]


def test_the_first_signal_that_scores_tokens_is_the_default() -> None:
    signals = (Signal("draft", kind="medusa"), Signal("reward"), Signal("other"))

    class Values(FakeEngine):
        def forward(self, *args):  # type: ignore[no-untyped-def]
            return super().forward(*args)

    chosen = Values(make_manifest(signals=signals[1:]))
    assert generate(chosen, "ab", max_tokens=3)[0].rewards == (
        generate(chosen, "ab", ArgsGreedy(signal="reward"), max_tokens=3)[0].rewards
    )


def lines(tmp_path: Path, *objects: object) -> Path:
    path = tmp_path / "prompts.jsonl"
    texts = [o if isinstance(o, str) else json.dumps(o) for o in objects]
    path.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return path


def test_lines_override_what_the_command_line_says(tmp_path: Path) -> None:
    path = lines(
        tmp_path,
        {"prompt": "one"},
        "",
        {"prompt": "two", "weight": -1, "seed": 5, "stop": ["x"], "max_tokens": 3, "top_p": None},
        {"prompt": [1, 2], "method": "plain", "temperature": 0.5},
        {"prompt": "four", "method": "args-stochastic", "top_p": 0.5, "stop": "y"},
    )
    defaults = Defaults(options={"top_k": 4, "weight": 2.0}, request={"max_tokens": 9, "seed": 1})
    assert read_prompts(path, defaults) == [
        Request("one", ArgsGreedy(top_k=4, weight=2.0), max_tokens=9, seed=1),
        Request("two", ArgsGreedy(top_k=4, weight=-1), max_tokens=3, seed=5, stop=("x",)),
        Request([1, 2], Plain(top_k=4, temperature=0.5), max_tokens=9, seed=1),
        Request(
            "four",
            ArgsStochastic(top_k=4, weight=2.0, top_p=0.5),
            max_tokens=9,
            seed=1,
            stop=("y",),
        ),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2: not JSON"),
        ('"text"', 'line 2: expected an object with "prompt"'),
        ("{}", 'line 2: expected an object with "prompt"'),
        ("[" * 100_000, "line 2: not JSON"),
        (
            {"prompt": "a", "wieght": 1},
            "line 2: unknown field wieght; known: prompt, m",
        ),
        ({"prompt": 4}, "line 2: a prompt must be text"),
        ({"prompt": "a", "method": "best"}, "line 2: unknown method 'best'"),
        ({"prompt": "a", "method": 3}, "line 2: method must be the name of a method, got 3"),
        ({"prompt": "a", "top_k": "8"}, "line 2: top_k must be an integer"),
        ('{"prompt": "a", "weight": NaN}', "line 2: weight must be a finite number"),
        ({"prompt": "a", "temperature": 1.0}, "line 2: method 'args-greedy' has no option temp"),
        ({"prompt": "a", "max_tokens": -1}, "line 2: max_tokens must be an integer"),
        ({"prompt": "a", "stop": {}}, "line 2: stop must be texts"),
        ('{"prompt": "\\ud800"}', "line 2: the prompt is not valid Unicode"),
    ],
)
def test_wrong_lines_are_named_by_number(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(RequestError, match="prompts.jsonl: " + message) as caught:
        read_prompts(lines(tmp_path, {"prompt": "fine"}, line), Defaults())
    assert "\n" not in str(caught.value)


def test_all_wrong_lines_are_reported_together(tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        read_prompts(lines(tmp_path, *["{"] * 8), Defaults())
    assert "line 1: " in str(caught.value)
    assert "line 5: " in str(caught.value)
    assert "and 3 more lines" in str(caught.value)


def test_bytes_that_are_not_utf8_are_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"prompt": "a"}\n{"prompt": "\xff"}\n')
    with pytest.raises(RequestError, match="line 2: not UTF-8 at byte 12"):
        read_prompts(path, Defaults())


def test_files_without_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="has no prompts; expected lines like"):
        read_prompts(lines(tmp_path, "", "  "), Defaults())
    with pytest.raises(RequestError, match=r"cannot read the prompts in .*: no such file"):
        read_prompts(tmp_path / "missing.jsonl", Defaults())
    with pytest.raises(RequestError, match=r"cannot read the prompts in .*: is a directory"):
        read_prompts(tmp_path, Defaults())
    monkeypatch.setattr(prompt_file, "_LIMIT_BYTES", 3)
    with pytest.raises(RequestError, match="at most 3 are read"):
        read_prompts(lines(tmp_path, {"prompt": "a"}), Defaults())


def test_a_command_line_option_must_fit_the_command_line_method() -> None:
    with pytest.raises(OtterError, match="method 'plain' has no option weight"):
        Defaults("plain", {"weight": 1.0}).request_for("a")
