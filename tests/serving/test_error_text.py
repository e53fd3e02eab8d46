"""L0: what clients and the log hear of an error."""

from __future__ import annotations

import time

import pytest

from otter_export.errors import EngineError
from otter_export.serving.error_text import CLIENT_LIMIT, LOG_LIMIT, client_text, log_text

ENGINE = "/srv/my models/otter/1/engine"


@pytest.mark.parametrize(
    ("text", "heard"),
    [
        (f"{ENGINE}/tokenizer.json is not readable", "tokenizer.json is not readable"),
        (f"{ENGINE} is no engine", "the engine is no engine"),
        ("Load model from /models/otter/1/model.onnx failed", "Load model from model.onnx failed"),
        ("[ONNXError] /onnxruntime_src/core/run.cc:123 bad", "[ONNXError] run.cc:123 bad"),
        ("cannot open '/etc/passwd': it is absent", "cannot open 'passwd': it is absent"),
        ("expected 1 to 8, got 9/10 and/or 3", "expected 1 to 8, got 9/10 and/or 3"),
        ("see https://example.test/a/b", "see https://example.test/a/b"),
        ("two\nlines\tand  blanks", "two lines and blanks"),
        ("\x1b[31mred\x00\u202e\ud800", "\\x1b[31mred\\x00\\u202e\\ud800"),
    ],
)
def test_clients_hear_one_line_without_paths(text: str, heard: str) -> None:
    assert client_text(EngineError(text), ENGINE) == heard


def test_long_texts_are_cut_and_cost_nothing() -> None:
    error = EngineError("there is no signal " + "\x1bx" * 10_000_000)
    started = time.process_time()
    assert CLIENT_LIMIT <= len(client_text(error, ENGINE)) <= CLIENT_LIMIT + 3
    assert LOG_LIMIT <= len(log_text(error)) <= LOG_LIMIT + 3
    # A few milliseconds; without the cut, seconds.
    assert time.process_time() - started < 0.5


def test_the_log_has_paths() -> None:
    assert log_text(EngineError(f"{ENGINE}/tokenizer.json")) == f"{ENGINE}/tokenizer.json"
