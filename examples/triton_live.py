"""A web page on which text appears token by token, coloured by its reward.

    python examples/triton_live.py --engine ENGINE      # then open http://127.0.0.1:8080

Each token is shaded from red (low reward) to green; pointing at one shows the candidates that it
won against. A guided and an unguided continuation of one prompt can run side by side.

This is a small server of its own, because browsers let a page talk to the server that it came from
alone: it hands out the page and passes requests on to tritonserver. It listens on 127.0.0.1 only.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import http.server
import json
import signal
import sys
from pathlib import Path
from typing import Any, ClassVar

from otter_export.errors import OtterError
from otter_export.runtime.tokenizer import JsonTokenizer

PAGE = Path(__file__).with_name("triton_live.html")
HOST = "127.0.0.1"
TIMEOUT_SECONDS = 300.0
_LIMIT_BYTES = 1 << 20


class LiveServer(http.server.ThreadingHTTPServer):
    """Hands out the page, and passes its requests on.

    Args:
        port: On 127.0.0.1; 0 takes a free one, see ``server_port``.
        upstream: ``HOST:PORT`` of tritonserver's HTTP endpoint.
        model: Name of the model.
        tokenizer: The engine's ``tokenizer.json``, for the texts of candidates, of which the server
            sends the ids; None leaves them out.
    """

    daemon_threads = True

    def __init__(self, port: int, upstream: str, model: str, tokenizer: Path | None = None) -> None:
        super().__init__((HOST, port), LiveHandler)
        self.upstream = upstream
        self.model = model
        self._tokenizer = JsonTokenizer(tokenizer) if tokenizer else None

    def explained(self, line: bytes) -> bytes:
        """An event with the texts of its candidates; other lines as they are."""
        if self._tokenizer is None or not line.startswith(b"data:") or b"candidate_ids" not in line:
            return line
        event = json.loads(line.removeprefix(b"data:"))
        ids = event["candidate_ids"]
        ids = ids if isinstance(ids, list) else [ids]
        event["candidate_texts"] = [self._tokenizer.decode([token]) for token in ids]
        return f"data: {json.dumps(event)}\n".encode()


class LiveHandler(http.server.BaseHTTPRequestHandler):
    """``GET /`` is the page, ``POST /generate_stream`` goes to the model."""

    server: LiveServer
    _headers: ClassVar[dict[str, str]] = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": (
            "default-src 'none'; connect-src 'self'; "
            "script-src 'unsafe-inline'; style-src 'unsafe-inline'"
        ),
        "X-Content-Type-Options": "nosniff",
    }

    def do_GET(self) -> None:
        """The page."""
        if self.path != "/":
            self._answer(404, "text/plain", b"not found")
            return
        self._answer(200, "text/html; charset=utf-8", PAGE.read_bytes())

    def do_POST(self) -> None:
        """A request of the page; its responses are passed on as they come."""
        length = self.headers.get("Content-Length", "")
        if self.path != "/generate_stream" or not self._is_local():
            self._answer(404, "text/plain", b"not found")
        elif not length.isdecimal() or int(length) > _LIMIT_BYTES:
            self._answer(413, "text/plain", b"too large")
        else:
            self._pass_on(self.rfile.read(int(length)))

    def _is_local(self) -> bool:
        """Whether the page came from here: other sites can make a browser send requests, too."""
        origin = self.headers.get("Origin")
        return origin is None or origin == f"http://{self.headers.get('Host')}"

    def _pass_on(self, body: bytes) -> None:
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
                    self.wfile.write(self.server.explained(line))
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
