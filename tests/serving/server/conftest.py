"""A real tritonserver with repositories that the command line made from a tiny fp32 engine.

One server serves all tests of a worker process. It listens on free ports of 127.0.0.1, is ended by
its process id, and ends by itself should this process be killed.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from otter_export import load_engine
from otter_export.checkpoint import Checkpoint
from tests import built, tiny
from tests.serving.server.running import CONTROL_KEY, LIFETIME_SECONDS, Library, Served
from tools.tritonserver.environment import default_environment
from tools.tritonserver.server import start

#: A request that a killed model never answers holds up the end of the server, so briefly.
IMPATIENT = "--exit-timeout-secs=2"
#: Long enough that a request can be caught in the middle.
MAX_SEQUENCE_LENGTH = 2048
#: Of the model ``small``, which tests fill and kill; ``otter`` is left in peace.
SMALL_BATCH, SMALL_QUEUE = 1, 2


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
    """A tiny random fp32 engine of two signals whose words are not ASCII."""
    pytest.importorskip("mobius", reason="building engines needs otter-export[build]")
    root = tmp_path_factory.mktemp("served")
    overrides = {"max_position_embeddings": MAX_SEQUENCE_LENGTH}
    checkpoint = built.random_checkpoint(
        root / "checkpoint", base=overrides, signals=(tiny.REWARD, tiny.NEXT)
    )
    for directory in (checkpoint.directory, root / "checkpoint-base"):
        path = directory / "tokenizer.json"
        if path.is_file():
            path.write_text(path.read_text(encoding="utf-8").replace('"w', '"ŵ'), encoding="utf-8")
    return built.build(Checkpoint.open(root / "checkpoint"), root / "engine")


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
    limits += ["--max-tokens", 2000, "--max-candidates", 128]
    command("triton", engine_directory, "--out", path, "--name", "small", *limits)
    return path


@pytest.fixture(scope="session")
def served(repository: Path, small_repository: Path, engine_directory: Path) -> Iterator[Served]:
    """The server with both, ready; ended when the session ends, whatever happens."""
    with start(
        repository,
        repository.with_name("server.log"),
        lifetime_seconds=LIFETIME_SECONDS,
        control_key=CONTROL_KEY,
        arguments=[f"--model-repository={small_repository}", IMPATIENT],
        variables={"OMP_NUM_THREADS": "1"},
    ) as server:
        yield Served(server, repository, engine_directory)


@pytest.fixture(scope="session")
def library(engine_directory: Path) -> Library:
    """The library on the same engine."""
    return Library(load_engine(engine_directory, threads=1))
