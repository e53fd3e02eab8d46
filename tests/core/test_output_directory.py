"""L0: output directories appear complete or not at all."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from otter_export import output_directory as module
from otter_export.errors import OtterError
from otter_export.files import exclusive
from otter_export.output_directory import output_directory

MARKER = "marker.json"


def write(path: Path, text: str, force: bool = False) -> None:
    with output_directory(path, marker=MARKER, force=force) as directory:
        (directory / MARKER).write_text(text)


def names(path: Path) -> list[str]:
    return sorted(p.name for p in path.iterdir())


def test_it_appears_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with output_directory(target, marker=MARKER) as directory:
        assert not target.exists() and directory.parent == target.parent
        (directory / MARKER).write_text("one")
    assert (target / MARKER).read_text() == "one"
    assert names(target.parent) == ["b"]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert stat.S_IMODE(target.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), output_directory(tmp_path / "x", marker=MARKER) as directory:
        (directory / "half").write_text("made")
        raise RuntimeError
    assert names(tmp_path) == []


def test_an_existing_directory_needs_force(tmp_path: Path) -> None:
    write(tmp_path / "x", "one")
    with pytest.raises(OtterError, match="exists; choose another name, or replace it with --force"):
        write(tmp_path / "x", "two")
    assert (tmp_path / "x" / MARKER).read_text() == "one"
    write(tmp_path / "x", "two", force=True)
    assert (tmp_path / "x" / MARKER).read_text() == "two"
    assert names(tmp_path) == ["x"]


def test_a_failed_replacement_keeps_the_old_one(tmp_path: Path) -> None:
    write(tmp_path / "x", "one")
    with (
        pytest.raises(RuntimeError),
        output_directory(tmp_path / "x", marker=MARKER, force=True),
    ):
        raise RuntimeError
    assert (tmp_path / "x" / MARKER).read_text() == "one"
    assert names(tmp_path) == ["x"]


def test_force_replaces_nothing_of_another_kind(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("years of work")
    file = tmp_path / "file"
    file.write_text("text")
    link = tmp_path / "link"
    write(tmp_path / "real", "one")
    link.symlink_to(tmp_path / "real")
    for path in (home, file, link):
        with pytest.raises(OtterError, match="--force does not replace it"):
            write(path, "two", force=True)
    assert (home / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "real" / MARKER).read_text() == "one"


def test_an_empty_directory_is_filled(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    write(tmp_path / "x", "one")
    assert (tmp_path / "x" / MARKER).read_text() == "one"


def test_a_killed_process_leaves_nothing_under_the_name(tmp_path: Path) -> None:
    write(tmp_path / "x", "one")
    code = (
        "import os, pathlib, signal\n"
        "from otter_export.output_directory import output_directory\n"
        f"with output_directory(pathlib.Path('x'), marker={MARKER!r}, force=True) as d:\n"
        "    (d / 'half').write_text('made')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "x" / MARKER).read_text() == "one"
    write(tmp_path / "x", "two", force=True)  # what was left does not stand in the way
    assert names(tmp_path) == ["x"]  # and is removed


@pytest.mark.parametrize("force", [False, True])
def test_what_appears_meanwhile_is_kept(tmp_path: Path, force: bool) -> None:
    for kind, name in ((Path.mkdir, "folder"), (Path.touch, "file")):
        target = tmp_path / name
        with (
            pytest.raises(OtterError, match="--force"),
            output_directory(target, marker=MARKER, force=force) as directory,
        ):
            (directory / MARKER).write_text("ours")
            kind(target)
            if target.is_dir():
                (target / "thesis.tex").write_text("years of work")
    assert (tmp_path / "folder" / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "file").read_bytes() == b""
    assert names(tmp_path) == ["file", "folder"]


def test_of_two_at_a_time_one_wins(tmp_path: Path) -> None:
    target = tmp_path / "x"
    with (
        pytest.raises(OtterError, match="x has appeared while this command worked; it is kept"),
        output_directory(target, marker=MARKER) as directory,
    ):
        (directory / MARKER).write_text("slow")
        write(target, "fast")
    assert (target / MARKER).read_text() == "fast"
    assert names(tmp_path) == ["x"]


def test_what_is_in_use_is_not_replaced(tmp_path: Path) -> None:
    target = tmp_path / "x"
    write(target, "one")
    with (
        exclusive(target, "is being trained"),
        pytest.raises(OtterError, match="is in use by another process"),
    ):
        write(target, "two", force=True)
    assert (target / MARKER).read_text() == "one"


def test_without_exchange_names_are_recovered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_exchange", lambda one, other: False)
    target = tmp_path / "x"
    write(target, "one")
    write(target, "two", force=True)
    assert (target / MARKER).read_text() == "two"
    assert names(tmp_path) == ["x"]

    target.rename(tmp_path / ".x.0123456789abcdef.old")  # killed here
    with pytest.raises(OtterError, match="x exists"):
        write(target, "three")
    assert (target / MARKER).read_text() == "two"
    assert names(tmp_path) == ["x"]


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OtterError, match=r"cannot write .*file.*; "):
        write(tmp_path / "file" / "x", "one")
