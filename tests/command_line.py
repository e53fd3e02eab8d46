"""The command line, run in this process; the fixture ``cli`` of tests/conftest.py does it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest

from otter_export.cli import main


@dataclasses.dataclass(frozen=True)
class Result:
    """What a command did."""

    status: int
    stdout: str
    stderr: str


Cli = Callable[..., Result]


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> Result:
    """Run a command as the console script does."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return Result(caught.value.code, captured.out, captured.err)
