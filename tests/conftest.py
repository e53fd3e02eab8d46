"""Fixtures for all tests; the tiny models themselves are in tests/tiny.py."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import hypothesis
import pytest

# Nothing may reach for the network, and a test's speed must not depend on the machine's cores.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from tests import tiny
from tests.command_line import Cli, run

# The same examples in every run, and no deadline: a shared machine is no reason to fail.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("suite")

#: The checkout, for tests that compare it with its settings.
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session", params=list(tiny.CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    """Each family that has a tiny base."""
    return str(request.param)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama base; read only."""
    return tiny.write_base(tmp_path_factory.mktemp("tiny") / "llama")


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A tiny self-contained Llama checkpoint with one value signal; read only."""
    return tiny.write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", base=tiny_llama)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Cli:
    """``cli("insert", base, checkpoint)`` runs a command as the console script does."""
    return functools.partial(run, capsys)
