"""L0: lines of files as they come: marks, line ends, pipes, devices."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from otter_export.errors import RequestError
from otter_export.json_lines import read_lines
from tests.pipes import written_pipe


def read(path: Path, limit: int = 1000) -> list[tuple[int, bytes]]:
    return list(read_lines(path, "prompts", limit=limit, error=RequestError))


def written(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(content)
    return path


def test_marks_line_ends_and_blank_lines(tmp_path: Path) -> None:
    path = written(tmp_path, b"\xef\xbb\xbf{}\r\n\r\n \t\n[1]")
    assert [(number, line.strip()) for number, line in read(path)] == [(1, b"{}"), (4, b"[1]")]


def test_a_line_is_bounded(tmp_path: Path) -> None:
    """A tokenizer takes some hundred times the memory of its text."""
    path = written(tmp_path, b"{}\n" + b" " * ((8 << 20) + 1))
    with pytest.raises(RequestError, match="line 2: a line of more than 8388608 bytes"):
        read(path, 1 << 30)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}".encode("utf-16"), "is UTF-16; save it as UTF-8"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        (b"x" * 1001, "has 1001 bytes; at most 1000 are read"),
    ],
)
def test_what_is_no_such_file(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        read(written(tmp_path, content))


def test_a_pipe_is_read(tmp_path: Path) -> None:
    path = written_pipe(tmp_path / "pipe", b"{}\n[]\n")
    assert read(path) == [(1, b"{}\n"), (2, b"[]\n")]


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read(tmp_path / "pipe") == []


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"{}\n")))
    assert read(Path("-")) == [(1, b"{}\n")]


def test_what_never_ends_is_refused() -> None:
    with pytest.raises(RequestError, match="/dev/zero, line 1: a line of more than"):
        read(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("path", "message"),
    [("", "is a directory"), ("none", "no such file"), ("a\0b", "null byte")],
)
def test_what_cannot_be_read(tmp_path: Path, path: str, message: str) -> None:
    with pytest.raises(RequestError, match=f"cannot read the prompts in .*: .*{message}"):
        read(tmp_path / path)
