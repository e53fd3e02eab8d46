"""L5: limits, clients that go away, failures, and the end of the server."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from otter_export import load_engine
from otter_export.errors import EngineError
from otter_export.web import app
from tests.command_line import run
from tests.runtime.fake_engine import FakeEngine, make_manifest
from tests.web.running import Server, serving, wait_for

COMPLETIONS = "/v1/completions"
#: So long that it is certainly still at work.
LONG: dict[str, Any] = {"prompt": "w3", "max_tokens": 120, "method": "plain", "min_tokens": 120}


class Slow(FakeEngine):
    """A step takes its time; fails once in the step that is named."""

    def __init__(self, seconds: float = 0.02, fails_at: int = -1) -> None:
        super().__init__(make_manifest(max_sequence_length=1000, eos_token_ids=()))
        self.tokenizer.chat_template = None  # type: ignore[attr-defined]
        self.seconds = seconds
        self.fails_at = fails_at

    def forward(self, *arguments: Any) -> Any:
        time.sleep(self.seconds)
        if len(self.calls) + 1 == self.fails_at:
            self.fails_at = -1
            raise EngineError("the device at /secret/place/gpu0 is gone")
        return super().forward(*arguments)


# Refusals


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", COMPLETIONS, b"", 400),
        ("POST", COMPLETIONS, b"{", 400),
        ("POST", COMPLETIONS, b"[" * 50_000, 400),
        ("POST", COMPLETIONS, b"\xff\xfe", 400),
        ("POST", COMPLETIONS, b"[]", 400),
        ("POST", COMPLETIONS, b"{}", 400),
        ("POST", COMPLETIONS, b'{"prompt": "w3", "temperature": NaN}', 400),
        ("POST", COMPLETIONS, b'{"prompt": "w3", "signal": "no"}', 400),
        ("POST", COMPLETIONS, b'{"prompt": "w3", "drafts": "no"}', 400),
        ("POST", COMPLETIONS, b'{"prompt": [999]}', 400),
        ("POST", COMPLETIONS, b'{"prompt": "w3", "model": "gpt-4"}', 404),
        ("POST", COMPLETIONS, b'{"prompt": "w3", "model": []}', 404),
        ("POST", COMPLETIONS, b'{"prompt": "' + b"w3 " * 128 + b'"}', 400),
        ("POST", "/v1/chat/completions", b'{"messages": {}}', 400),
        ("POST", "/v1/chat/completions", b'{"messages": [{"role": "cat", "content": ""}]}', 400),
        ("GET", COMPLETIONS, None, 405),
        ("POST", "/health", b"", 405),
        ("POST", "/", b"", 405),
        ("GET", "/nothing", None, 404),
        ("GET", "/v1/models/gpt", None, 404),
        ("GET", "/../etc/passwd", None, 404),
        ("GET", "/" + "x" * 5000, None, 404),
    ],
)
def test_malformed_is_4xx_in_openais_form(
    server: Server, method: str, path: str, body: bytes | None, status: int
) -> None:
    assert (method == "GET") == (body is None)
    found, answer = server.call(path, body)
    assert found == status
    error = answer["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["type"] in ("invalid_request_error", "not_found_error")
    assert 0 < len(error["message"]) <= 600 and "\n" not in error["message"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "127.0.0.1:1"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:80"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "localhost:5", "Origin": "http://localhost:5"}, 200),
        ({"Host": "localhost:5", "Origin": "http://localhost:6"}, 403),
    ],
)
def test_browsers_of_elsewhere(server: Server, headers: dict[str, str], status: int) -> None:
    assert server.call("/health", None, headers)[0] == status
    assert server.call(COMPLETIONS, {"prompt": "w3", "max_tokens": 1}, headers)[0] == status


def test_large_bodies(server: Server) -> None:
    most = 2 * server.application.service.settings.max_prompt_bytes
    # More digits than HTTP's own reader takes.
    assert server.raw(COMPLETIONS, b"x" * 10, {"Content-Length": "9" * 30})[0] == 400
    with socket.create_connection(("127.0.0.1", server.port), 10) as link:
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {most + 1}"
        link.sendall(f"{head}\r\n\r\n".encode())
        # Answered before it is sent.
        assert link.recv(4096).startswith(b"HTTP/1.1 413")
    with socket.create_connection(("127.0.0.1", server.port), 10) as link:
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked"
        link.sendall(f"{head}\r\n\r\n{most + 2:x}\r\n".encode() + b" " * (most + 2) + b"\r\n0\r\n")
        assert link.recv(4096).startswith(b"HTTP/1.1 413")
    assert server.call("/health")[0] == 200


def test_a_body_that_does_not_come(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app, "BODY_SECONDS", 0.2)
    with socket.create_connection(("127.0.0.1", server.port), 10) as link:
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100"
        link.sendall(f"{head}\r\n\r\n{{".encode())
        assert link.recv(4096).startswith(b"HTTP/1.1 408")


def test_a_full_queue_and_a_deadline() -> None:
    with serving(Slow(0.05), max_batch_size=1, max_queue=1) as server:
        streams = [open_stream(server, LONG | {"prompt": "a"})]
        wait_for(lambda: server.stats.running == 1)
        streams.append(open_stream(server, LONG | {"prompt": "b"}))
        wait_for(lambda: server.stats.queued == 1)
        status, content, headers = server.raw(COMPLETIONS, LONG)
        assert status == 429 and headers["Retry-After"] == "1"
        assert json.loads(content)["error"]["type"] == "rate_limit_error"
        for stream in streams:
            stream.close()
        server.idle()
        status, answer = server.call(COMPLETIONS, LONG | {"deadline_ms": 200})
        assert status == 504 and answer["error"]["code"] == "deadline_exceeded"
        *_, error, end = server.events(COMPLETIONS, LONG | {"deadline_ms": 200})
        assert end == "[DONE]" and "were over" in error["error"]["message"]
        assert server.idle().expired == 2


def test_an_engine_that_fails_fails_what_is_in_work() -> None:
    with serving(Slow(0.0, fails_at=5)) as server:
        *pieces, error, end = server.events(COMPLETIONS, LONG)
        assert len(pieces) >= 2 and end == "[DONE]"
        assert error["error"] == {
            "message": "the device at gpu0 is gone",
            "type": "server_error",
            "param": None,
            "code": None,
        }
        assert server.call(COMPLETIONS, {"prompt": "a", "max_tokens": 2})[0] == 200
        status, answer = server.call("/v1/chat/completions", {"messages": [{"role": "user"}]})
        assert status == 400
        chat = {"messages": [{"role": "user", "content": "a"}]}
        status, answer = server.call("/v1/chat/completions", chat)
        assert status == 400 and "no chat template" in answer["error"]["message"]


# Clients that go away


def open_stream(server: Server, body: dict[str, Any], stream: bool = True) -> socket.socket:
    content = json.dumps({**body, "stream": stream}).encode()
    link = socket.create_connection(("127.0.0.1", server.port), 30)
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}"
    link.sendall(f"{head}\r\n\r\n".encode() + content)
    return link


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_is_cancelled(stream: bool) -> None:
    with serving(Slow()) as server:
        link = open_stream(server, LONG | {"max_tokens": 900, "min_tokens": 900}, stream)
        wait_for(lambda: server.stats.tokens > 3)
        link.close()
        wait_for(lambda: server.stats.cancelled == 1)
        assert server.idle().tokens < 800


def test_200_streams_with_random_disconnects(engine_dir: Path) -> None:
    generator = random.Random(5)
    plans = [
        (generator.randrange(2, 60), generator.choice([None, None, 0, 1, 2, 5, 10, 20]))
        for _ in range(200)
    ]
    chosen = ("args-greedy", "args-stochastic", "plain")

    async def one(server: Server, number: int, tokens: int, leaves: int | None) -> int:
        """Pieces that came, until the end or until it leaves."""
        body = {"prompt": f"w{3 + number % 100} w4", "max_tokens": tokens, "stream": True}
        body |= {"method": chosen[number % 3], "min_tokens": tokens, "seed": number}
        content = json.dumps(body).encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}"
        writer.write(f"{head}\r\nConnection: close\r\n\r\n".encode() + content)
        await writer.drain()
        pieces = 0
        while leaves is None or pieces < leaves:
            line = await reader.readline()
            if not line or b"[DONE]" in line:
                break
            assert b'"error"' not in line, line
            pieces += line.startswith(b"data: {")
        writer.close()
        return pieces

    async def everyone(server: Server) -> list[int]:
        calls = [one(server, i, tokens, leaves) for i, (tokens, leaves) in enumerate(plans)]
        return await asyncio.gather(*calls)

    engine = load_engine(engine_dir, threads=1)
    with serving(engine, max_queue=200, max_batch_size=32) as server:
        before = server.tasks()
        counts = asyncio.run(asyncio.wait_for(everyone(server), 120))
        stats = server.idle()
        for count, (tokens, leaves) in zip(counts, plans, strict=True):
            # A token is a piece; who stays has them all.
            assert count == (tokens if leaves is None else min(tokens, leaves))
        stayed = sum(leaves is None for _, leaves in plans)
        # Some left before their request was read: they never were requests.
        assert stats.submitted == stats.completed + stats.cancelled <= 200
        assert stats.completed >= stayed and stats.cancelled > 20 and stats.failed == 0
        wait_for(lambda: server.tasks() <= before)
        # Whoever comes next finds every place free.
        assert server.call(COMPLETIONS, {"prompt": "w3", "max_tokens": 2})[0] == 200


# The command


def start(engine: Path, *options: str) -> tuple[subprocess.Popen[str], int]:
    command = [sys.executable, "-m", "otter_export", "serve", str(engine), "--port", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("open http://127.0.0.1:"), process.communicate()
    return process, int(line.split()[1].rpartition(":")[2])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_requests_end(engine_dir: Path, number: signal.Signals) -> None:
    process, port = start(engine_dir, "--name", "tiny", "--log-requests")
    try:
        body = json.dumps({**LONG, "stream": True, "model": "tiny"}).encode()
        with socket.create_connection(("127.0.0.1", port), 30) as link:
            head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
            link.sendall(f"{head}\r\n\r\n".encode() + body)
            content = link.recv(100)
            process.send_signal(number)
            while part := link.recv(1 << 16):
                content += part
        assert content.startswith(b"HTTP/1.1 200") and b"[DONE]" in content
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 0
    (line,) = errors.splitlines()
    assert json.loads(line)["event"] == "completed"


def test_what_does_not_end_is_ended() -> None:
    began = time.monotonic()
    with serving(Slow(0.05), grace=1) as server:
        link = open_stream(server, LONG | {"max_tokens": 900, "min_tokens": 900})
        wait_for(lambda: server.stats.tokens > 0)
    assert time.monotonic() - began < 20
    assert server.stats.cancelled == 1
    link.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--port", "70000"), "cannot listen on 127.0.0.1:70000"),
        (("--host", "203.0.113.7", "--port", "0"), "cannot listen on 203.0.113.7:0"),
        (("--method", "best", "--port", "0"), "default_method must be one of"),
        (("--max-queue", "0", "--port", "0"), "max_queue must be an integer of at least 1"),
        (("--threads", "0", "--port", "0"), "threads must be"),
        (("--sha256", "abc", "--port", "0"), "sha256"),
    ],
)
def test_wrong_options_are_one_line(
    engine_dir: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    result = run(capsys, "serve", engine_dir, *options)
    assert result.status == 2 and result.stdout == ""
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_a_port_that_is_taken(engine_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run(capsys, "serve", engine_dir, "--port", port)
    assert result.status == 2 and "address already in use; give another --port" in result.stderr
    result = run(capsys, "serve", engine_dir / "nothing", "--port", 0)
    assert result.status == 2 and result.stderr.count("\n") == 1
