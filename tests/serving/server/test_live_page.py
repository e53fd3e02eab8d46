"""L5: the live page's server, before a stand-in for tritonserver; test_answers has the real one."""

from __future__ import annotations

import http.client
import http.server
import json
import threading
from collections.abc import Iterator

import pytest

from examples import triton_client
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


def test_a_body_must_have_a_sensible_length(upstream: str) -> None:
    with live_page(upstream) as address:
        for length in (str(1 << 40), "-1", "x"):
            headers = {"Content-Length": length}
            assert send(address, "POST", "/generate_stream", None, **headers)[0] == 413


def test_a_server_that_is_not_there_is_said(upstream: str) -> None:
    with live_page(f"{HOST}:{free_ports().http}") as address:
        status, body, _ = send(address, "POST", "/generate_stream", b"{}")
    assert status == 502 and "does not answer" in json.loads(body)["error"]
