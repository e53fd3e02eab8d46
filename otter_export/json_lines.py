"""The lines of a JSON Lines file that a user names: a file, a pipe, or ``-`` for standard input."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from otter_export.boundary import system_error
from otter_export.errors import OtterError

#: Stands for standard input.
STDIN = Path("-")
#: One line; a device without an end has no lines at all. A million token ids are less.
_LIMIT_LINE = 8 << 20
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def read_lines(
    path: Path, what: str, *, limit: int, error: type[OtterError]
) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers from 1.

    They are read once, in order, so that ``<(command)`` and other pipes work. Line ends may be
    those of Windows, and a byte order mark is left out.

    Args:
        path: The file.
        what: What is in it, for messages: ``"prompts"``.
        limit: Most bytes to read.
        error: What to raise.

    Raises:
        OtterError: Of the class ``error``: it cannot be read, is too large, or is no UTF-8 text.
    """
    try:
        with _opened(path) as file:
            size = os.fstat(file.fileno()).st_size if path != STDIN else 0
            if size > limit:
                raise error(f"{path} has {size} bytes; at most {limit} are read")
            count = 0
            for number, line in enumerate(iter(lambda: file.readline(_LIMIT_LINE + 1), b""), 1):
                count += len(line)
                if len(line) > _LIMIT_LINE or count > limit:
                    raise error(
                        f"{path}, line {number}: a line of more than {_LIMIT_LINE} bytes, or a "
                        f"file of more than {limit}, is not read"
                    )
                if number == 1:
                    line = _first(path, line, error)
                if line.strip():
                    yield number, line
    except OSError as caught:
        raise error(f"cannot read the {what} in {system_error(caught, path)}") from None
    # A NUL in the path.
    except ValueError as caught:
        raise error(f"cannot read the {what} in {path}: {caught}") from None


def _first(path: Path, line: bytes, error: type[OtterError]) -> bytes:
    """The first line without a byte order mark; refuses what is no text in UTF-8."""
    if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise error(f"{path} is UTF-16; save it as UTF-8")
    if line.startswith(_LFS_POINTER):
        raise error(f"{path} is a Git LFS pointer; fetch the file itself with: git lfs pull")
    return line.removeprefix(codecs.BOM_UTF8)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    if path == STDIN:
        yield sys.stdin.buffer
        return
    # Without O_NONBLOCK, a named pipe that nobody writes to would be waited for, for ever. Reading
    # then waits for those who do write.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        os.set_blocking(descriptor, True)
        yield file
