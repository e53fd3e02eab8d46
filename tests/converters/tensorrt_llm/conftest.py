"""The stand-ins of TensorRT-LLM, importable while a test runs and gone afterwards."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """``tensorrt_llm`` is 1.2's stand-in, in this process and in those that it starts."""
    yield from _available(HERE / "standin", monkeypatch)


@pytest.fixture
def standin_torch(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """``tensorrt_llm`` is 1.3's stand-in."""
    yield from _available(HERE / "standin_torch", monkeypatch)


@contextlib.contextmanager
def standin_torch_available() -> Iterator[pytest.MonkeyPatch]:
    """The same for a block, with the patch to go on with."""
    available = contextlib.contextmanager(_available)
    with pytest.MonkeyPatch.context() as patch, available(HERE / "standin_torch", patch):
        yield patch


def _available(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    _forget()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    try:
        yield folder
    finally:
        _forget()


def _forget() -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in ("tensorrt_llm", "otter_trtllm"):
            del sys.modules[name]
