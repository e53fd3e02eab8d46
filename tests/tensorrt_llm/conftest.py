"""The stand-in of TensorRT-LLM, importable while a test runs and gone afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

STANDIN = Path(__file__).parent / "standin"


@pytest.fixture
def standin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """``tensorrt_llm`` is the stand-in, in this process and in those that it starts."""
    _forget()
    monkeypatch.syspath_prepend(STANDIN)
    monkeypatch.setenv("PYTHONPATH", str(STANDIN))
    yield STANDIN
    _forget()


def _forget() -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] == "tensorrt_llm":
            del sys.modules[name]
