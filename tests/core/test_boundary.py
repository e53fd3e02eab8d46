"""L0: whatever a library or the system raises becomes one error of ours, which names the file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from otter_export.boundary import errors_as, reason, system_error
from otter_export.errors import ConfigError, EngineError, OtterError
from otter_export.files import writing


class PanicError(BaseException):
    """What a Rust library's panic is in Python: no `Exception`."""


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (Exception("no such variant\nat line 1"), "no such variant at line 1"),
        (AssertionError("out of range"), "AssertionError: out of range"),
        (AssertionError(), "AssertionError"),
        (KeyError("rope"), "KeyError: 'rope'"),
        (PanicError("index out of bounds"), "PanicError: index out of bounds"),
        (MemoryError(), "not enough memory; "),
        (PermissionError(errno.EACCES, "Permission denied", "m.onnx"), "m.onnx: permission denied"),
    ],
)
def test_anything_becomes_our_error(raised: BaseException, said: str) -> None:
    with pytest.raises(EngineError) as caught, errors_as(EngineError, "m.onnx is wrong"):
        raise raised
    assert str(caught.value).startswith(f"m.onnx is wrong: {said}")
    assert caught.value.__cause__ is raised


@pytest.mark.parametrize("raised", [ConfigError("ours"), KeyboardInterrupt(), SystemExit(3)])
def test_our_errors_and_requests_to_end_pass(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as caught, errors_as(EngineError, "what"):
        raise raised
    assert caught.value is raised


def test_our_error_inside_of_a_librarys_is_what_is_said() -> None:
    ours = ConfigError("tensor w holds NaN")
    with pytest.raises(ConfigError) as caught, errors_as(EngineError, "what"):
        try:
            raise ours
        except ConfigError as error:
            try:
                raise ValueError("in serialize_tensor") from error
            except ValueError as wrapper:
                raise RuntimeError("in serialize_graph") from wrapper
    assert caught.value is ours


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "no space left on device; free space there"),
        (errno.EROFS, "read-only file system; choose a place that can be written"),
        (errno.EACCES, "permission denied; check its permissions"),
        (errno.EFBIG, "file too large; .*ulimit -f"),
        (errno.EBADMSG, "bad message$"),
    ],
)
def test_writing_names_file_reason_and_remedy(tmp_path: Path, number: int, said: str) -> None:
    with pytest.raises(OtterError, match=said) as caught, writing(tmp_path / "x"):
        raise OSError(number, os.strerror(number))
    assert str(caught.value).startswith(f"cannot write {tmp_path / 'x'}: ")


def test_a_copy_without_space_names_what_it_writes(tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, "No space left on device", "source")
    wanted = r"cannot write .*/target: no space"
    with pytest.raises(OtterError, match=wanted), writing(tmp_path / "target"):
        raise error


def test_texts_without_a_number() -> None:
    assert system_error(OSError("odd"), Path("f")) == "f: odd"
    assert reason(OSError()) == "OSError"
