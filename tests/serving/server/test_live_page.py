"""L5: the live page's server, before a stand-in for tritonserver; test_answers has the real one."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from examples import triton_client, triton_live
from examples.triton_client import ServerError
from tests.serving.server.running import live_page
from tools.tritonserver.server import HOST, free_ports

TOKEN = b'data: {"text_output": "one", "token_id": 1, "finish_reason": ""}\n\n'


class Upstream(http.server.BaseHTTPRequestHandler):
    """Promises two responses and breaks off after the first."""

    def do_POST(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Content-Length", str(2 * len(TOKEN)))
        self.end_headers()
        self.wfile.write(TOKEN)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def upstream() -> Iterator[str]:
    server = http.server.HTTPServer((HOST, 0), Upstream)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"{HOST}:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def send(
    address: str, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, bytes, http.client.HTTPMessage]:
    connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
    connection.request(method, path, body, headers)
    reply = connection.getresponse()
    found = reply.status, reply.read(), reply.headers
    connection.close()
    return found


def test_the_page_may_load_nothing_from_elsewhere(upstream: str) -> None:
    with live_page(upstream) as address:
        status, body, headers = send(address, "GET", "/")
        assert status == 200 and body.startswith(b"<!DOCTYPE html>")
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"")
        assert send(address, "GET", "/etc/passwd")[0] == 404


def test_what_came_before_a_break_is_passed_on(upstream: str) -> None:
    with live_page(upstream) as address:
        status, body, _ = send(address, "POST", "/generate_stream", b"{}")
    assert (status, body) == (200, TOKEN)


def test_the_page_is_that_of_serve_and_has_its_terms(upstream: str) -> None:
    with live_page(upstream) as address:
        assert send(address, "GET", "/")[1] == (triton_live.PAGE).read_bytes()
        model = json.loads(send(address, "GET", "/v1/models")[1])["data"][0]
        assert model["id"] == "otter" and model["otter"]["chat"] is False
        status, body, _ = send(address, "POST", "/v1/completions", b'{"prompt": "one"}')
    piece = json.loads(body.removeprefix(b"data:"))["choices"][0]["otter"]
    assert (status, piece["texts"], piece["token_ids"]) == (200, ["one"], [1])
    last = triton_live.piece_of(
        b'data: {"text_output":"x","token_id":2,"reward":0.5,"finish_reason":"eos",'
        b'"candidate_ids":[2,3],"candidate_logits":[1.5,1.0],"candidate_scores":[2,1]}'
    )
    found, done, end = last.split(b"\n", 2)
    piece = json.loads(found.removeprefix(b"data:"))["choices"][0]["otter"]
    assert piece["finish_reason"] == "eos" and piece["rewards"] == [0.5]
    assert piece["candidates"] == [
        [
            {"token_id": 2, "text": None, "logit": 1.5, "reward": None, "score": 2},
            {"token_id": 3, "text": None, "logit": 1.0, "reward": None, "score": 1},
        ]
    ]
    assert (done, end) == (b"", b"data: [DONE]\n")
    failed = triton_live.piece_of(b'{"error": "no"}')
    assert json.loads(failed.removeprefix(b"data:")) == {"error": {"message": "no"}}


def test_a_client_sees_that_a_stream_broke_off(upstream: str) -> None:
    stream = triton_client.stream_http(upstream, {"text_input": "one"})
    assert next(stream)["token_id"] == 1
    with pytest.raises(ServerError, match="broke off before its end"):
        next(stream)


def test_other_sites_cannot_use_it(upstream: str) -> None:
    with live_page(upstream) as address:
        assert send(address, "POST", "/generate_stream", b"{}", Origin="http://evil.test")[0] == 404
        assert send(address, "POST", "/generate_stream", b"{}", Origin=address)[0] == 200
        assert send(address, "POST", "/elsewhere", b"{}")[0] == 404


@pytest.mark.parametrize("host", ["evil.test", "evil.test:{port}", "127.0.0.1", "127.0.0.1:1", ""])
def test_a_name_that_was_made_to_lead_here_is_refused(upstream: str, host: str) -> None:
    """DNS rebinding: for the browser, the page and this server are of one origin then."""
    with live_page(upstream) as address:
        name = host.format(port=address.rpartition(":")[2])
        headers = {"Host": name, "Origin": f"http://{name}"}
        assert send(address, "POST", "/generate_stream", b"{}", **headers)[0] == 404
        assert send(address, "GET", "/", **headers)[0] == 404
        for own in ("localhost", "127.0.0.1"):
            name = f"{own}:{address.rpartition(':')[2]}"
            headers = {"Host": name, "Origin": f"http://{name}"}
            assert send(address, "POST", "/generate_stream", b"{}", **headers)[0] == 200


def test_a_body_must_have_a_sensible_length(upstream: str) -> None:
    with live_page(upstream) as address:
        for length in (str(1 << 40), "-1", "x", "65537", "9" * 5000):
            headers = {"Content-Length": length}
            assert send(address, "POST", "/generate_stream", None, **headers)[0] == 413
        headers = {"Transfer-Encoding": "chunked"}
        assert send(address, "POST", "/generate_stream", None, **headers)[0] == 411


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[1]", b"[" * 60_000, b'{"a":' * 10_000, b'{"a": [[1]]}', b'{"a": {}}', b"\xff"],
    ids=lambda body: repr(body[:12]),
)
def test_only_flat_objects_are_passed_on(upstream: str, body: bytes) -> None:
    """150,000 brackets end tritonserver 24.10."""
    with live_page(upstream) as address:
        status, answer, _ = send(address, "POST", "/generate_stream", body)
    assert status == 400 and "flat JSON object" in json.loads(answer)["error"]


@pytest.mark.parametrize("sent", [b"", b"POST /gen", b"POST / HTTP/1.1\r\nHost:", None])
def test_a_request_that_stalls_is_closed(upstream: str, sent: bytes | None) -> None:
    """Also one that goes on, byte by byte: each begins a socket's own timeout anew."""
    with live_page(upstream, request_seconds=0.5) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as connection:
            if sent is None:
                sent = b"POST /generate_stream HTTP/1.1\r\nHost: " + f"{host}:{port}".encode()
                sent += b"\r\nContent-Length: 1000\r\n\r\n"
            connection.sendall(sent)
            started = time.monotonic()
            with contextlib.suppress(OSError):
                while time.monotonic() < started + 5:
                    connection.sendall(b"x")
                    time.sleep(0.05)
            assert time.monotonic() < started + 4
        assert send(address, "GET", "/")[0] == 200


def test_there_are_only_so_many_connections(upstream: str) -> None:
    with live_page(upstream, request_seconds=1.0) as address, contextlib.ExitStack() as held:
        host, _, port = address.removeprefix("http://").partition(":")
        for _ in range(triton_live._LIMIT_CONNECTIONS):
            held.enter_context(socket.create_connection((host, int(port)), timeout=20))
        with socket.create_connection((host, int(port)), timeout=20) as one_more:
            assert one_more.recv(1) == b""
        deadline = time.monotonic() + 20
        while True:  # their time is up after a second, and there is room again
            with contextlib.suppress(OSError):
                assert send(address, "GET", "/")[0] == 200
                break
            assert time.monotonic() < deadline
            time.sleep(0.1)


def test_a_server_that_is_not_there_is_said(upstream: str) -> None:
    with live_page(f"{HOST}:{free_ports().http}") as address:
        status, body, _ = send(address, "POST", "/generate_stream", b"{}")
    assert status == 502 and "does not answer" in json.loads(body)["error"]
