"""Boundaries with other libraries and the system: whatever they raise becomes one error of ours.

A library raises what it likes: plain ``Exception``, `AssertionError`, an error of its own
hierarchy, or, where it is written in Rust, a panic that is no ``Exception`` at all. So nothing here
lists types; each place that calls a library about a user's file names the file and our kind of
error.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from otter_export.errors import OtterError

#: What to do about an error of the system.
_REMEDIES = {
    errno.ENOSPC: "free space there, or choose another disk",
    errno.EDQUOT: "free space of your quota there, or choose another disk",
    errno.EFBIG: "the file is larger than this system allows; see `ulimit -f`",
    errno.EACCES: "check its permissions and those of the directories above it",
    errno.EPERM: "check its permissions and those of the directories above it",
    errno.EROFS: "choose a place that can be written",
    errno.ENOENT: "check the name",
    errno.EISDIR: "a file is expected there",
    errno.ENOTDIR: "a directory is expected there",
    errno.EEXIST: "choose another name",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "its links lead in a circle",
    errno.EMFILE: "too many files are open; see `ulimit -n`",
    errno.ENFILE: "too many files are open on this machine; close other programs",
    errno.ENOMEM: "close other programs, or give the process more",
    errno.EIO: "the disk or its connection fails; check it",
    errno.ESTALE: "the network file system lost it; try again",
}
_NO_MEMORY = "not enough memory; close other programs, or give the process more (see `ulimit -v`)"
#: Exceptions whose text says it all; of the others the type is told too.
_PLAIN = (Exception, ValueError, RuntimeError)


@contextlib.contextmanager
def errors_as(kind: Callable[[str], OtterError], what: str) -> Iterator[None]:
    """Turn whatever a library raises in the block into an error of ours.

    Our own errors pass, also where the library has put its own around them, and so does what asks
    the program to end (`KeyboardInterrupt`).

    Args:
        kind: Makes the error, of its message.
        what: What went wrong, with the file: ``"ONNX Runtime cannot load model.onnx"``.

    Raises:
        OtterError: Of that kind; its message is ``what`` and the library's reason.
    """
    try:
        yield
    except (OtterError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a Rust library's panic is no Exception
        if (ours := _wrapped(error)) is not None:
            raise ours from None
        raise kind(f"{what}: {reason(error)}") from error


def _wrapped(error: BaseException) -> OtterError | None:
    """The error of ours that a library's is caused by: it calls us back, as for a lazy tensor."""
    cause = error.__cause__
    while cause is not None and not isinstance(cause, OtterError):
        cause = cause.__cause__
    return cause


def reason(error: BaseException) -> str:
    """What an exception says, in one line; its type where the text alone would not do."""
    if isinstance(error, MemoryError):
        return _NO_MEMORY
    if isinstance(error, OSError) and error.errno is not None:
        return system_error(error)
    text = " ".join(str(error).split())
    name = type(error).__name__
    if not text:
        return name
    return text if type(error) in _PLAIN else f"{name}: {text}"


def system_error(error: OSError, path: Path | None = None) -> str:
    """The file, the reason and the remedy.

    Args:
        error: What the system raised.
        path: The file, where the error does not name one.
    """
    if error.errno is None:
        text = str(error) or type(error).__name__
        return f"{path}: {text}" if path is not None else text
    file = error.filename if path is None else path
    if isinstance(file, bytes):
        file = os.fsdecode(file)
    text = (error.strerror or os.strerror(error.errno)).lower()
    named = text if file is None else f"{file}: {text}"
    remedy = _REMEDIES.get(error.errno)
    return named if remedy is None else f"{named}; {remedy}"
