"""A running server and what tests ask of it."""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from examples import triton_client
from examples.triton_client import Response
from examples.triton_live import LiveServer
from otter_export import generate
from otter_export.runtime.engine import Engine
from otter_export.runtime.request import Request, Result
from tests.serving.server.cases import CASES, check_answer
from tools.tritonserver.server import CONTROL_VARIABLE, HOST, TritonServer

#: Of the servers whose models a test loads again.
CONTROL_KEY = "a-key-of-these-tests"
#: A server ends by itself after this long: more than the suite takes on a slow machine, since one
#: server serves all tests of a worker, with others between them. It ends with its worker anyway.
LIFETIME_SECONDS = 1800
#: A metric of Prometheus' text format.
_METRIC = re.compile(r"(?P<name>otter_\w+)\{(?P<labels>[^}]*)\} (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Served:
    """A running server.

    Args:
        server: The process.
        repository: Its model repository.
        engine_directory: The engine that was made into it.
    """

    server: TritonServer
    repository: Path
    engine_directory: Path

    def metrics(self, model: str = "otter") -> dict[str, float]:
        """A model's metrics by name and further label: ``otter_requests_total completed``."""
        url = f"http://{HOST}:{self.server.ports.metrics}/metrics"
        with urllib.request.urlopen(url, timeout=30) as reply:
            text = reply.read().decode()
        found = {}
        for metric in _METRIC.finditer(text):
            labels = dict(_LABEL.findall(metric["labels"]))
            if labels.pop("model") == model:
                labels.pop("instance")
                name = " ".join([metric["name"], *labels.values()])
                found[name] = float(metric["value"])
        return found

    def wait_for(
        self, condition: Callable[[dict[str, float]], bool], model: str = "otter"
    ) -> dict[str, float]:
        """The metrics once they are so; they are published twice a second."""
        deadline = time.monotonic() + 30
        while not condition(found := self.metrics(model)):
            assert time.monotonic() < deadline, f"that never came; the last were {found}"
            time.sleep(0.1)
        return found

    def wait_idle(self, model: str = "otter") -> dict[str, float]:
        """The metrics once no request is in work, and all that was is counted."""
        # Two rounds of publishing: the first may have been on its way.
        time.sleep(1.1)
        return self.wait_for(
            lambda m: m["otter_running"] == 0 and m["otter_queue_length"] == 0, model
        )

    @property
    def http(self) -> str:
        """Address of the HTTP endpoint."""
        return f"{HOST}:{self.server.ports.http}"

    @property
    def grpc(self) -> str:
        """Address of the gRPC endpoint."""
        return f"{HOST}:{self.server.ports.grpc}"


@dataclasses.dataclass(frozen=True)
class Library:
    """The same engine in this process: what the server's answers are compared with."""

    engine: Engine

    def alone(self, request: Request) -> Result:
        """The answer to one request, alone."""
        return generate(self.engine, request)[0]


def ask(served: Served, fields: dict[str, Any], model: str = "otter") -> Response:
    """The answer to a request, in one response."""
    return triton_client.generate(served.http, fields, model=model, timeout_seconds=60)


def check_alive(served: Served, library: Library) -> None:
    """The model ``otter`` answers, and rightly."""
    case = CASES["guided"]
    check_answer([ask(served, case.fields)], library.alone(case.request))


def grown(before: dict[str, float], after: dict[str, float], name: str) -> float:
    """By how much a metric grew."""
    return after[name] - before[name]


def stubs(port: int, model: str) -> dict[int, Path]:
    """Processes of a model, of the server at this HTTP port, and the shared memory of each."""
    found = {}
    for server in _process_ids(f"tritonserver.*--http-port={port}( |$)"):
        for stub in _process_ids(f"/{model}/1/model.py .* {server} "):
            command = Path(f"/proc/{stub}/cmdline").read_bytes().decode().split("\0")
            (region,) = (word for word in command if word.startswith("triton_python_backend_shm"))
            found[stub] = Path("/dev/shm") / region
    return found


def _process_ids(pattern: str) -> list[int]:
    done = subprocess.run(["pgrep", "-f", "--", pattern], capture_output=True)
    return [int(line) for line in done.stdout.split()]


def kill(server: TritonServer, model: str) -> None:
    """Kill the process of a model, as the system does when memory runs out."""
    ((process, region),) = stubs(server.ports.http, model).items()
    os.kill(process, signal.SIGKILL)
    # Nobody else would remove it.
    region.unlink()


def ready(served: Served) -> bool:
    """Whether the server itself says that it is ready."""
    connection = http.client.HTTPConnection(served.http, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/v2/health/ready")
        return connection.getresponse().status == 200


def probe(served: Served, repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the repository's own probe."""
    script = [sys.executable, str(repository / "small" / "probe.py"), "--model", "small"]
    options = ["--url", f"http://{served.http}", "--timeout", "2", *arguments]
    return subprocess.run(
        [*script, *options],
        env={**os.environ, CONTROL_VARIABLE: CONTROL_KEY},
        capture_output=True,
        text=True,
        timeout=60,
    )


@contextlib.contextmanager
def live_page(
    upstream: str, tokenizer: Path | None = None, *, request_seconds: float = 10.0
) -> Iterator[str]:
    """The live page's server; yields its address."""
    with LiveServer(0, upstream, "otter", tokenizer, request_seconds=request_seconds) as live:
        thread = threading.Thread(target=live.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{HOST}:{live.server_port}"
        finally:
            live.shutdown()
            thread.join()
