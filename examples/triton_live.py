"""A web page on which text appears token by token, coloured by its reward.

    python examples/triton_live.py --engine ENGINE      # then open http://127.0.0.1:8080

Each token is shaded from red (low reward) to green; pointing at one shows the candidates that it
won against. A guided and an unguided continuation of one prompt can run side by side.

This is a small server of its own, because browsers let a page talk to the server that it came from
alone: it hands out the page of `otter-export serve`, which needs no Triton, and passes requests on
to tritonserver, in whose terms it puts what the page asks. It listens on 127.0.0.1 only.

It is also a limit in front of tritonserver: one path of one model, a body of known and small size
that is a flat JSON object, few connections, each with its time. tritonserver 24.10 has no such
limits; 200,000 brackets in one body end it (docs/security.md).
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import http.server
import itertools
import json
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import otter_export
from otter_export.errors import OtterError
from otter_export.runtime.tokenizer import JsonTokenizer

#: Where Triton's own requests go, and those of the page.
PATH, PAGE_PATH = "/generate_stream", "/v1/completions"
PAGE = Path(otter_export.__file__).with_name("web") / "page.html"
HOST = "127.0.0.1"
TIMEOUT_SECONDS = 300.0
#: Names under which a browser may call this server. A page of elsewhere whose name was made to lead
#: here ("DNS rebinding") calls it by its own.
LOOPBACK_NAMES = ("127.0.0.1", "localhost")
_LIMIT_BYTES = 1 << 16
_LIMIT_CONNECTIONS = 32
#: For a whole request to arrive, and for a browser to take some of the answer.
_REQUEST_SECONDS = 10.0
_TAKE_SECONDS = 30.0
#: What tritonserver does not say of its model.
_UNKNOWN = {"signals": [], "chat": False, "max_tokens": 2048, "max_candidates": 64}


class LiveServer(http.server.ThreadingHTTPServer):
    """Hands out the page, and passes its requests on.

    Args:
        port: On 127.0.0.1; 0 takes a free one, see ``server_port``.
        upstream: ``HOST:PORT`` of tritonserver's HTTP endpoint.
        model: Name of the model.
        tokenizer: The engine's ``tokenizer.json``, for the texts of candidates, of which the server
            sends the ids; None leaves them out.
        request_seconds: For a whole request to arrive; then its connection is closed.
    """

    daemon_threads = True

    def __init__(
        self,
        port: int,
        upstream: str,
        model: str,
        tokenizer: Path | None = None,
        *,
        request_seconds: float = _REQUEST_SECONDS,
    ) -> None:
        super().__init__((HOST, port), LiveHandler)
        self.upstream = upstream
        self.model = model
        self.request_seconds = request_seconds
        self.hosts = {f"{name}:{self.server_port}" for name in LOOPBACK_NAMES}
        if self.server_port == http.client.HTTP_PORT:
            self.hosts |= set(LOOPBACK_NAMES)
        self._places = threading.BoundedSemaphore(_LIMIT_CONNECTIONS)
        self._tokenizer = JsonTokenizer(tokenizer) if tokenizer else None

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection on a thread of its own, or close it: there are enough of them."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection and give its place back."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A line on stderr; browsers go away all the time, which is none."""
        error = sys.exception()
        if not isinstance(error, OSError):
            print(f"error: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    def explained(self, line: bytes) -> bytes:
        """An event with the texts of its candidates; other lines as they are."""
        if self._tokenizer is None or not line.startswith(b"data:"):
            return line
        event = json.loads(line.removeprefix(b"data:"))
        if "candidate_ids" not in event:
            return line
        ids = as_list(event["candidate_ids"])
        event["candidate_texts"] = [self._tokenizer.decode([token]) for token in ids]
        return f"data: {json.dumps(event)}\n".encode()


class LiveHandler(http.server.BaseHTTPRequestHandler):
    """``GET /`` is the page, `PATH` and `PAGE_PATH` go to the model."""

    server: LiveServer
    timeout = _TAKE_SECONDS
    _headers: ClassVar[dict[str, str]] = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": (
            "default-src 'none'; connect-src 'self'; "
            "script-src 'unsafe-inline'; style-src 'unsafe-inline'"
        ),
        "X-Content-Type-Options": "nosniff",
    }

    def setup(self) -> None:
        """Close the connection if its request does not arrive in time."""
        super().setup()
        # A timeout of the socket begins anew with every byte; this one does not.
        close = self.connection.shutdown
        self._deadline = threading.Timer(self.server.request_seconds, _quietly, [close])
        self._deadline.daemon = True
        self._deadline.start()

    def finish(self) -> None:
        """The connection ends."""
        self._deadline.cancel()
        super().finish()

    def do_GET(self) -> None:
        """The page."""
        self._deadline.cancel()
        if self._is_local() and self.path == "/":
            self._answer(200, "text/html; charset=utf-8", PAGE.read_bytes())
        elif self._is_local() and self.path == "/v1/models":
            model = {"id": self.server.model, "otter": _UNKNOWN}
            self._answer(200, "application/json", json.dumps({"data": [model]}).encode())
        else:
            self._answer(404, "text/plain", b"not found")

    def do_POST(self) -> None:
        """A request of the page; its responses are passed on as they come."""
        length = self.headers.get("Content-Length", "")
        if self.path not in (PATH, PAGE_PATH) or not self._is_local():
            self._answer(404, "text/plain", b"not found")
        elif "Transfer-Encoding" in self.headers:
            self._answer(411, "text/plain", b"send a Content-Length")
        elif not length.isdecimal() or len(length) > 9 or int(length) > _LIMIT_BYTES:
            self._answer(413, "text/plain", b"too large")
        else:
            body = self.rfile.read(int(length))
            self._deadline.cancel()
            fields = flat_object(body)
            if fields is None:
                self._answer(400, "application/json", b'{"error": "expected a flat JSON object"}')
            else:
                of_page = self.path == PAGE_PATH
                self._pass_on(tensors_of(fields) if of_page else fields, of_page)

    def _is_local(self) -> bool:
        """Whether the page came from here: other sites can make a browser send requests, too."""
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        return host in self.server.hosts and origin in (None, f"http://{host}")

    def _pass_on(self, fields: dict[str, Any], of_page: bool) -> None:
        body = json.dumps(fields).encode()
        connection = http.client.HTTPConnection(self.server.upstream, timeout=TIMEOUT_SECONDS)
        # When the browser goes away, writing fails and this connection closes: tritonserver then
        # cancels the request.
        with contextlib.closing(connection):
            try:
                path = f"/v2/models/{self.server.model}/generate_stream"
                connection.request("POST", path, body, {"Content-Type": "application/json"})
                reply = connection.getresponse()
            except (OSError, http.client.HTTPException) as error:
                message = f"tritonserver at {self.server.upstream} does not answer: {error}"
                self._answer(502, "application/json", json.dumps({"error": message}).encode())
                return
            self._start(reply.status, reply.headers.get_content_type())
            # What breaks off has no last event, and the page says so.
            with contextlib.suppress(OSError, http.client.HTTPException):
                for line in reply:
                    event = self.server.explained(line)
                    self.wfile.write(piece_of(event) if of_page else event)
                    self.wfile.flush()

    def _answer(self, status: int, kind: str, body: bytes) -> None:
        self._start(status, kind)
        self.wfile.write(body)

    def _start(self, status: int, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in self._headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line per request would only hide errors."""


def flat_object(body: bytes) -> dict[str, Any] | None:
    """The fields of a JSON object of plain values and lists of them; None for anything else.

    Args:
        body: Small; Python's reader stops at a thousand brackets.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    lists = [value if isinstance(value, list) else [value] for value in fields.values()]
    nested = any(isinstance(value, list | dict) for values in lists for value in values)
    return None if nested else fields


def tensors_of(fields: dict[str, Any]) -> dict[str, Any]:
    """What the page asks for, by the names of the model's inputs."""
    renamed = {"prompt": "text_input"}
    return {renamed.get(name, name): value for name, value in fields.items()}


def piece_of(line: bytes) -> bytes:
    """A line of tritonserver's as the page reads it; other lines than events as they are."""
    try:
        event = json.loads(line.removeprefix(b"data:"))
    except ValueError:
        return line
    if "error" in event:
        return f"data: {json.dumps({'error': {'message': event['error']}})}\n".encode()
    columns = ("candidate_ids", "candidate_texts", "candidate_logits", "candidate_rewards")
    values = [as_list(event.get(name)) for name in (*columns, "candidate_scores")]
    rows = itertools.zip_longest(*values)
    names = ("token_id", "text", "logit", "reward", "score")
    reason = event.get("finish_reason") or None
    otter = {
        "token_ids": as_list(event.get("token_id")),
        "texts": [event.get("text_output", "")],
        "rewards": as_list(event.get("reward")),
        "finish_reason": reason,
        "candidates": [[dict(zip(names, row, strict=True)) for row in rows]],
    }
    piece = f"data: {json.dumps({'choices': [{'otter': otter}]})}\n"
    return f"{piece}\ndata: [DONE]\n".encode() if reason else piece.encode()


def as_list(value: Any) -> list[Any]:
    """A list, which tritonserver writes as its element if it has one, and leaves out if none."""
    return [] if value is None else value if isinstance(value, list) else [value]


def _quietly(shutdown: Callable[[int], None]) -> None:
    with contextlib.suppress(OSError):
        shutdown(socket.SHUT_RDWR)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description="Show rewards live in a web page.")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--http", default="127.0.0.1:8000", help="tritonserver's HTTP endpoint")
    parser.add_argument("--model", default="otter")
    parser.add_argument("--engine", type=Path, help="its directory, to show candidates as text")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    tokenizer = options.engine / "tokenizer.json" if options.engine else None
    try:
        server = LiveServer(options.port, options.http, options.model, tokenizer)
    except (OtterError, OSError) as error:
        sys.exit(f"error: {error}")
    with server:
        print(f"open http://{HOST}:{server.server_port} ; Ctrl-C stops", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
