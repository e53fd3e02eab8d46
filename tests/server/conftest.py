"""A real tritonserver with repositories that the command line made from a tiny fp32 engine.

One server serves all tests of a worker process. It listens on free ports of 127.0.0.1, is ended by
its process id, and ends by itself should this process be killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from examples.triton_environment import default_environment
from examples.triton_live import LiveServer
from examples.triton_server import HOST, TritonServer, start
from otter_export import generate, load_engine
from otter_export.runtime.engine import Engine
from otter_export.runtime.request import Request, Result
from tests import built, tiny

#: The server ends by itself after this long.
LIFETIME_SECONDS = 300
#: Long enough that a request can be caught in the middle.
MAX_SEQUENCE_LENGTH = 2048
#: Of the model ``small``, which tests fill and kill; ``otter`` is left in peace.
SMALL_BATCH, SMALL_QUEUE = 1, 2
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


@pytest.fixture(scope="session")
def installed() -> None:
    """Skips where the server cannot be had, and says why."""
    pytest.importorskip("tritonclient.grpc", reason="the client, otter-export[triton], is missing")
    problem = default_environment().problem()
    if problem is not None:
        pytest.skip(problem)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``otter-export`` as a user does."""
    line = [sys.executable, "-m", "otter_export", *map(str, arguments)]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="session")
def engine_directory(installed: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random fp32 engine whose words are not ASCII."""
    pytest.importorskip("mobius", reason="building engines needs otter-export[build]")
    root = tmp_path_factory.mktemp("served")
    overrides = {"max_position_embeddings": MAX_SEQUENCE_LENGTH}
    checkpoint = built.random_checkpoint(
        root / "checkpoint", base=overrides, signals=(tiny.REWARD,)
    )
    for directory in (checkpoint.directory, root / "checkpoint-base"):
        path = directory / "tokenizer.json"
        if path.is_file():
            path.write_text(path.read_text(encoding="utf-8").replace('"w', '"ŵ'), encoding="utf-8")
    command("build", root / "checkpoint", "--target", "onnx", "--out", root / "engine")
    return root / "engine"


@pytest.fixture(scope="session")
def repository(engine_directory: Path) -> Path:
    """The model repository, by the command line."""
    path = engine_directory.with_name("repository")
    command("triton", engine_directory, "--out", path)
    return path


@pytest.fixture(scope="session")
def small_repository(engine_directory: Path) -> Path:
    """A second one, whose model takes few requests at a time."""
    path = engine_directory.with_name("small_repository")
    limits = ["--max-batch-size", SMALL_BATCH, "--max-queue", SMALL_QUEUE]
    command("triton", engine_directory, "--out", path, "--name", "small", *limits)
    return path


@pytest.fixture(scope="session")
def served(repository: Path, small_repository: Path, engine_directory: Path) -> Iterator[Served]:
    """The server with both, ready; ended when the session ends, whatever happens."""
    with start(
        repository,
        repository.with_name("server.log"),
        lifetime_seconds=LIFETIME_SECONDS,
        arguments=[f"--model-repository={small_repository}"],
        variables={"OMP_NUM_THREADS": "1"},
    ) as server:
        yield Served(server, repository, engine_directory)


@pytest.fixture(scope="session")
def library(engine_directory: Path) -> Library:
    """The library on the same engine."""
    return Library(load_engine(engine_directory, threads=1))


@contextlib.contextmanager
def live_page(upstream: str, tokenizer: Path | None = None) -> Iterator[str]:
    """The live page's server; yields its address."""
    with LiveServer(0, upstream, "otter", tokenizer) as live:
        thread = threading.Thread(target=live.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://{HOST}:{live.server_port}"
        finally:
            live.shutdown()
            thread.join()
