"""L5: the probe's exit status, against a small HTTP server that answers as Triton does."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otter_export.converters.triton import repository as converter
from otter_export.errors import DeadlineError, QueueFullError
from otter_export.runtime.request import Request
from otter_export.runtime.scheduler import Limits, Scheduler
from tests.runtime.fake_engine import FakeEngine
from tools.tritonserver.server import CONTROL_HEADER, CONTROL_VARIABLE

PROBE = Path(converter.__file__).resolve().parent / "model" / "probe.py"
ALIVE = (200, {"token_id": 7, "reward": 0.25})
DEAD = (500, {"error": "Stub process 'otter_0_0' is not healthy."})


class Server:
    """Answers of ``/generate``, in turn, the last one for ever; keeps what it was asked."""

    def __init__(self, answers: list[tuple[int, Any]]) -> None:
        self.answers = answers
        self.asked: list[tuple[str, Any]] = []
        self.keys: list[str | None] = []
        self.url = ""

    def answer(self, path: str, body: Any) -> tuple[int, Any]:
        self.asked.append((path, body))
        if not path.endswith("/generate"):
            return 200, {}
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextlib.contextmanager
def serving(*answers: tuple[int, Any]) -> Iterator[Server]:
    state = Server(list(answers))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.keys.append(self.headers[CONTROL_HEADER])
            status, answer = state.answer(self.path, body)
            text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        def log_message(self, *arguments: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        state.url = f"http://127.0.0.1:{server.server_port}"
        yield state
        server.shutdown()


def probe(url: str, *options: str, **variables: str) -> tuple[int, str]:
    done = subprocess.run(
        # As in a container: no site-packages at all.
        [sys.executable, "-I", "-S", str(PROBE), "--url", url, *options],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout


def busy_messages() -> list[str]:
    """What the scheduler itself says when it is busy."""
    scheduler = Scheduler(FakeEngine(), Limits(max_queue=1))
    scheduler.submit(Request("a"), on_event=lambda event: None)
    with pytest.raises(QueueFullError) as full:
        scheduler.submit(Request("a"), on_event=lambda event: None)
    ends: list[object] = []
    late = Scheduler(FakeEngine())
    late.submit(Request("a"), on_event=ends.append, deadline_seconds=1e-9)
    while late.step():
        pass
    (expired,) = ends
    assert isinstance(expired, DeadlineError)
    return [str(full.value), str(expired)]


def test_a_token_is_a_sign_of_life() -> None:
    with serving(ALIVE) as server:
        status, said = probe(server.url, "--model", "film", "--timeout", "2")
    assert status == 0 and said.startswith("alive: token 7")
    ((path, body),) = server.asked
    assert path == "/v2/models/film/generate"
    # The model gives up first, and says so.
    assert body["max_tokens"] == 1 and body["deadline_ms"] < 2000


@pytest.mark.parametrize("answer", [DEAD, (200, {}), (404, b"<html>"), (400, {"error": "bad"})])
def test_anything_else_is_none(answer: tuple[int, Any]) -> None:
    with serving(answer) as server:
        status, said = probe(server.url)
    assert status == 1 and said.startswith("not alive")


def test_nobody_listens() -> None:
    with serving(ALIVE) as server:
        url = server.url
    assert probe(url, "--timeout", "1")[0] == 1


@pytest.mark.parametrize("code", [400, 503])
def test_a_busy_model_is_alive_but_not_ready(code: int) -> None:
    for message in busy_messages():
        with serving((code, {"error": message})) as server:
            assert probe(server.url)[0] == 0
            assert probe(server.url, "--strict")[0] == 1


def test_recovery_unloads_loads_and_asks_again() -> None:
    with serving(DEAD, ALIVE) as server:
        assert probe(server.url, "--recover")[0] == 0
    assert [path.rpartition("/")[2] for path, _ in server.asked] == [
        "generate",
        "unload",
        "load",
        "generate",
    ]


def test_the_key_goes_with_what_needs_it_alone() -> None:
    """And straight to the server: a proxy of the environment would see it."""
    variables = {CONTROL_VARIABLE: "the-owners-key", "http_proxy": "http://127.0.0.1:9"}
    with serving(DEAD, ALIVE) as server:
        assert probe(server.url, "--recover", **variables)[0] == 0
    assert server.keys == [None, "the-owners-key", "the-owners-key", None]


def test_a_key_that_no_header_can_hold_is_an_answer() -> None:
    with serving(DEAD) as server:
        assert probe(server.url, "--recover", **{CONTROL_VARIABLE: "a\nb"})[0] == 1


def test_a_recovery_that_does_not_help_fails() -> None:
    with serving(DEAD) as server:
        assert probe(server.url, "--recover")[0] == 1
