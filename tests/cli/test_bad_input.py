"""L5: every mistake in the table of `tests.cli.bad_input` is one clear line and exit status 2."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests import tiny
from tests.cli.bad_input import CASES, Case
from tests.command_line import Cli
from tests.dummy_engine import write_engine

ALL = [pytest.param(case, id=f"{topic}: {case.name}") for topic, cs in CASES.items() for case in cs]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``base/``, ``ckpt/`` and ``engine/`` without a mistake."""
    directory = tmp_path_factory.mktemp("pristine")
    base = tiny.write_base(directory / "base")
    tiny.write_checkpoint(directory / "ckpt", base=base)
    write_engine(directory / "engine")
    return directory


@pytest.fixture
def place(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a copy, so that messages have relative paths."""
    directory = Path(shutil.copytree(pristine, tmp_path / "place"))
    monkeypatch.chdir(directory)
    return directory


def listing(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("case", ALL)
def test_mistakes_are_one_line_and_status_2(case: Case, place: Path, cli: Cli) -> None:
    case.damage(place)
    before = listing(place)
    result = cli(*shlex.split(case.command))
    assert result.status == 2, result
    lines = result.stderr.splitlines()
    if lines[0].startswith("Usage:"):
        # click's own: usage, where to find help, an empty line, the error.
        assert len(lines) == 4 and lines[-1].startswith("Error: "), result.stderr
    else:
        # A command may say what it sets out to do; the error is one line, and the last.
        errors = [line for line in lines if not line.startswith("building ")]
        assert len(errors) == 1 and lines[-1].startswith("error: "), result.stderr
    assert re.search(case.error, lines[-1]), lines[-1]
    assert "Traceback" not in result.stderr and result.stdout == ""
    assert listing(place) == before, "a command that failed left something behind"


def test_the_table_is_large_enough_and_has_no_twins() -> None:
    cases = [case for cases in CASES.values() for case in cases]
    assert len(cases) >= 40
    for topic, cs in CASES.items():
        names = [case.name for case in cs]
        assert len(set(names)) == len(names), topic


def test_the_undamaged_directory_is_no_mistake(place: Path, cli: Cli) -> None:
    # Else every case would pass for the wrong reason.
    assert cli("inspect", "ckpt").status == 0
    assert cli("inspect", "engine").status == 0
    assert cli("insert", "base", "new", "--heads", "2", "--init", "normal").status == 0


def test_verbose_shows_where_an_error_came_from(place: Path, cli: Cli) -> None:
    plain = cli("inspect", "base")
    verbose = cli("inspect", "base", "--verbose")
    assert verbose.status == plain.status == 2
    assert "Traceback" in verbose.stderr and verbose.stderr.endswith(plain.stderr)
