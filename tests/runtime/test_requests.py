"""L4: requests and prompt files that are wrong, each with its one-line error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from otter_export import ArgsGreedy, ArgsStochastic, Plain, Request, generate, stream
from otter_export.config import Signal
from otter_export.errors import EngineError, OtterError, RequestError
from otter_export.runtime import prompt_file
from otter_export.runtime.prompt_file import Defaults, read_prompts
from tests.runtime.fake_engine import FakeEngine, make_manifest


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
        ({"stop": ("",)}, "stop must be texts of at least one character"),
        ({"stop": ("a", 3)}, "stop must be texts of at least one character"),
        ({"stop": 7}, "stop must be texts"),
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
                engine(signals=(Signal("reward"), Signal("tilt", kind="expert"))),
                "a",
                ArgsGreedy(signal="tilt"),
            ),
            r"asked for tilt; the engine's signals: reward \(value\), tilt \(expert\)",
        ),
        (lambda: generate(engine(), 5), "prompts must be texts or requests, got 5"),
        (lambda: generate(engine(), "a", batch_size=0), "batch_size must be an integer of at"),
        (lambda: stream(engine(), [Request("a")], batch_size=-1), "batch_size must be an integer"),
        (lambda: stream(engine(), [Request("")]), "the prompt is empty"),
    ],
)
def test_requests_that_do_not_fit_the_engine(call: Any, message: str) -> None:
    with pytest.raises((RequestError, EngineError), match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


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
        ({"prompt": "a", "wieght": 1}, "line 2: unknown field wieght; known: prompt, method"),
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
    with pytest.raises(RequestError, match=r"cannot read the prompts in .*: No such file"):
        read_prompts(tmp_path / "missing.jsonl", Defaults())
    with pytest.raises(RequestError, match=r"cannot read the prompts in .*: Is a directory"):
        read_prompts(tmp_path, Defaults())
    monkeypatch.setattr(prompt_file, "_LIMIT_BYTES", 3)
    with pytest.raises(RequestError, match="at most 3 are read"):
        read_prompts(lines(tmp_path, {"prompt": "a"}), Defaults())


def test_a_command_line_option_must_fit_the_command_line_method() -> None:
    with pytest.raises(OtterError, match="method 'plain' has no option weight"):
        Defaults("plain", {"weight": 1.0}).request_for("a")
