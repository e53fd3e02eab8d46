"""L5: commands whose standard output or error is closed, full, or of a narrow encoding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import built, tiny
from tests.dummy_engine import write_engine

PROGRAM = (sys.executable, "-m", "otter_export")


def shell(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of shell; ``$O`` is the command."""
    packages = os.pathsep.join(path for path in sys.path if path)
    env = {**os.environ, "PYTHONPATH": packages, "O": " ".join(PROGRAM), **environment}
    return subprocess.run(["bash", "-c", line], cwd=cwd, env=env, capture_output=True, check=False)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_engine(tmp_path / "engine")
    return tmp_path


def test_a_closed_stdout_is_no_failed_check(place: Path) -> None:
    tiny.write_base(place / "base")
    for closed in (">&-", "| true"):
        done = shell(
            f"set -o pipefail; $O insert base new --force --hidden-size 16 {closed}", place
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert (place / "new/otter_config.json").is_file()


def test_a_failed_check_stays_one_where_nobody_reads(tmp_path: Path) -> None:
    checkpoint = built.random_checkpoint(tmp_path / "checkpoint")
    engine = built.build(checkpoint, tmp_path / "engine")
    (engine / "tokenizer.json").write_bytes(
        (engine / "tokenizer.json").read_bytes().replace(b"w9", b"w_")
    )
    done = shell("set -o pipefail; $O verify engine --quick | true", tmp_path)
    assert done.returncode == 1 and b"checks failed: files" in done.stderr


def test_a_closed_stderr_ends_no_command(place: Path) -> None:
    tiny.write_base(place / "base")
    for closed in ("2>&-", "2> >(true)"):
        done = shell(f"$O insert base new --force --hidden-size 16 {closed}", place)
        assert done.returncode == 0 and b"wrote new" in done.stdout
        assert shell(f"$O inspect nowhere {closed}", place).returncode == 2


def test_no_file_takes_the_place_of_a_closed_stream(place: Path) -> None:
    done = shell("$O inspect engine <&- >&- 2>&-", place)
    assert done.returncode == 0


def test_a_closed_stdin_is_an_empty_one(place: Path) -> None:
    done = shell("$O generate engine --prompts - <&-", place)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: - has no prompts")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_behind_stdout_is_named(place: Path) -> None:
    for buffered in ("", "1"):
        done = shell("$O list targets > /dev/full", place, PYTHONUNBUFFERED=buffered)
        assert done.returncode == 2
        assert done.stderr.startswith(b"error: standard output: no space left on device; free")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_no_encoding_is_too_narrow(place: Path, encoding: str) -> None:
    name = b"caf\xc3\xa9\xe4\xb8\xad\xff".decode("utf-8", "surrogateescape")
    os.rename(place / "engine", place / name)  # noqa: PTH104  (a name that is no text)
    done = shell("$O inspect caf* && $O inspect caf* --json", place, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    missing = shell("$O inspect caf*x", place, PYTHONIOENCODING=encoding)
    assert missing.returncode == 2 and missing.stderr.startswith(b"error: caf")


def test_a_library_that_cannot_be_loaded_is_no_mistake_of_ours(place: Path) -> None:
    """As where an address space is too small for it (`ulimit -v`)."""
    (place / "onnxruntime.py").write_text("raise ImportError('no room for libonnx.so')")
    done = shell(f"PYTHONPATH={place}:$PYTHONPATH $O generate engine w3", place)
    assert done.returncode == 2
    assert b"no room for libonnx.so" in done.stderr and b"mistake in otter" not in done.stderr
