"""L0: only regular, bounded files are read; writing follows no link and tells its errors."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from otter_export import files, insert
from otter_export.base_model import BaseModel
from otter_export.channel_options import ChannelOptions
from otter_export.config import read_json
from otter_export.errors import CheckpointError, ConfigError, EngineError, OtterError
from otter_export.files import (
    clone_regular,
    copy_regular,
    create_partial,
    exclusive,
    hard_link,
    is_directory,
    is_file,
    read_regular,
    remove_leftovers,
    replacing,
    steady,
    writing,
)
from otter_export.hub import find_base
from otter_export.runtime.tokenizer import JsonTokenizer
from otter_export.safetensors_io import TensorStore, read_header
from tests import tiny

SPARSE = 1 << 40


def fifo(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def directory(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [fifo, device, directory])
@pytest.mark.parametrize(
    ("read", "error"),
    [
        (read_regular, OtterError),
        (read_json, ConfigError),
        (JsonTokenizer, EngineError),
        (read_header, CheckpointError),
        (lambda path: copy_regular(path, path.with_name("copy")), OtterError),
    ],
)
def test_what_is_no_regular_file_is_refused_at_once(
    tmp_path: Path,
    make: Callable[[Path], None],
    read: Callable[[Path], object],
    error: type[OtterError],
) -> None:
    path = tmp_path / "file"
    make(path)
    with pytest.raises(error, match="file is not a regular file; only regular files are read"):
        read(path)
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "added_tokens.json", "model.safetensors"]
)
@pytest.mark.parametrize("make", [fifo, Path.mkdir, lambda path: path.symlink_to("nowhere")])
def test_what_lies_in_the_place_of_a_file_is_not_passed_over(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    """A base without its generation_config.json would end its texts at other tokens."""
    base = tiny.write_base(tmp_path / "base")
    (base / name).unlink(missing_ok=True)
    make(base / name)
    with pytest.raises(OtterError, match=f"{name} is (not a regular file|a link that leads)"):
        insert.plan(str(base), tmp_path / "ck", ChannelOptions(hidden_size=16))


def test_sizes_are_bounded_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.touch()
    os.truncate(path, SPARSE)
    with pytest.raises(OtterError, match=f"has {SPARSE} bytes; at most 1000 are read"):
        read_regular(path, 1000)
    with pytest.raises(EngineError, match=f"has {SPARSE} bytes"):
        JsonTokenizer(path)
    with pytest.raises(OtterError, match=f"has {SPARSE} bytes"):
        copy_regular(path, tmp_path / "copy", limit=1000)


def test_links_to_regular_files_are_followed(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"{}")
    link = tmp_path / "config.json"
    link.symlink_to("blob")
    assert read_json(link) == {}
    copy_regular(link, tmp_path / "copy")
    assert not (tmp_path / "copy").is_symlink()
    assert (tmp_path / "copy").read_bytes() == b"{}"


@pytest.mark.parametrize("brackets", ["[]", '{"a": }'])
def test_deep_json_is_refused(tmp_path: Path, brackets: str) -> None:
    path, half = tmp_path / "config.json", len(brackets) - 1

    def nested(depth: int) -> None:
        path.write_text(brackets[:half] * depth + "1" + brackets[half:] * depth)

    nested(64)
    read_json(path)
    nested(65)
    with pytest.raises(ConfigError, match="nests more than 64"):
        read_json(path)
    nested(600)
    with pytest.raises(ConfigError, match="nests more than 64"):
        read_json(path)


@pytest.mark.parametrize("stem", ["otter", "model"])
def test_weights_behind_a_pipe_are_not_waited_for(tmp_path: Path, stem: str) -> None:
    fifo(tmp_path / f"{stem}.safetensors")
    with pytest.raises(CheckpointError, match=f"{stem}.safetensors"):
        TensorStore.open(tmp_path, stem)


def test_replacing_leaves_the_old_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_replacing_a_directory_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").mkdir()
    with (
        pytest.raises(OtterError, match=r"cannot write .*/file: is a directory; a file is"),
        replacing(tmp_path / "file"),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_replacing_writes_through_no_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    place = tmp_path / "place"
    place.mkdir()
    for name in ("file", ".file.partial"):
        (place / name).symlink_to(victim)
    with replacing(place / "file") as file:
        file.write(b"new")
    assert victim.read_bytes() == b"precious"
    assert (place / "file").read_bytes() == b"new"
    assert not (place / "file").is_symlink()


def test_leftovers_are_removed_when_their_process_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    held = [create_partial(path, directory=directory) for directory in (False, True)]
    code = (
        "import os, pathlib, signal\n"
        "from otter_export.files import create_partial\n"
        "for directory in (False, True):\n"
        "    create_partial(pathlib.Path('x'), directory=directory)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL
    others = [tmp_path / ".y.0123456789abcdef.partial", tmp_path / ".x.mine.partial"]
    for other in others:
        other.touch()
    assert len(list(tmp_path.iterdir())) == 6
    remove_leftovers(path)
    assert set(tmp_path.iterdir()) == {*others, *(partial for partial, _ in held)}
    for _, descriptor in held:
        os.close(descriptor)


def test_a_link_with_the_name_of_a_leftover_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    link = tmp_path / ".x.0123456789abcdef.partial"
    link.symlink_to(tmp_path / "victim")
    remove_leftovers(tmp_path / "x")
    assert link.is_symlink()
    assert (tmp_path / "victim").is_dir()


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "free space"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EROFS, "can be written"),
        (errno.EACCES, "permissions"),
        (errno.EIO, "check it"),
    ],
)
def test_system_errors_name_the_file_the_reason_and_what_to_do(number: int, remedy: str) -> None:
    message = f"write a/b: {os.strerror(number).lower()}; .*{remedy}"
    with pytest.raises(OtterError, match=message), writing(Path("a/b")):
        raise OSError(number, os.strerror(number))
    full = number in (errno.ENOSPC, errno.EFBIG)
    named = "a/b" if full else "a/c"  # what has no room is the file that is written
    with pytest.raises(OtterError, match=f"write {named}: "), writing(Path("a/b")):
        raise OSError(number, os.strerror(number), "a/c")


def test_a_lost_reason_is_found(tmp_path: Path) -> None:
    """Numpy counts what it has written, and says nothing else."""
    path, reasons = tmp_path / "model.onnx.data", r"(no space left|file too large)"
    with pytest.raises(OtterError, match=reasons), writing(path, 1 << 62):
        raise OSError("1536 requested and 0 written")
    with pytest.raises(OtterError, match="1536 requested"), writing(tmp_path / "x", 10):
        raise OSError("1536 requested and 0 written")
    assert not list(tmp_path.iterdir())


def test_a_directory_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    with (
        exclusive(tmp_path, "is being trained"),
        pytest.raises(OtterError, match="is being trained by another process; wait"),
        exclusive(tmp_path, "is being trained"),
    ):
        pass
    with (
        steady(tmp_path, "is being trained"),
        steady(tmp_path, "is being trained"),
        pytest.raises(OtterError, match="is being read by another"),
        exclusive(tmp_path, "is being read"),
    ):
        pass
    with exclusive(tmp_path, "is being trained"), exclusive(tmp_path / "none", "is being trained"):
        pass


def test_a_name_that_is_too_long_is_not_there(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 5000)
    assert not is_file(long) and not is_directory(long)
    with pytest.raises(CheckpointError, match="is not a directory"):
        BaseModel.open(long)
    with pytest.raises(CheckpointError, match="neither a directory nor a hub id"):
        find_base("x" * 5000)


def test_a_hard_link_follows_links_and_replaces_nothing(tmp_path: Path) -> None:
    source, link, taken = (tmp_path / name for name in ("blob", "link", "taken"))
    source.write_bytes(b"weights")
    link.symlink_to(source)
    assert hard_link(link, tmp_path / "new")
    assert (tmp_path / "new").samefile(source) and not (tmp_path / "new").is_symlink()
    taken.write_bytes(b"other")
    assert not hard_link(source, taken)
    assert not clone_regular(source, taken)
    assert taken.read_bytes() == b"other"


def test_a_clone_leaves_nothing_where_it_cannot_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(files.fcntl, "ioctl", refused)
    (tmp_path / "blob").write_bytes(b"weights")
    assert not clone_regular(tmp_path / "blob", tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["blob"]
