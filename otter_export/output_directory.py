"""Output directories: written beside their final name, then renamed.

A process that is killed half-way leaves nothing under the final name, and an existing directory
is replaced only after its successor is complete. What was not there at the start is not deleted.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from otter_export.errors import OtterError
from otter_export.files import (
    create_partial,
    held_leftovers,
    hold,
    remove_leftovers,
    writing,
)

#: A directory is not renamed onto another that holds something, nor onto a file or a link.
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def output_directory(destination: Path, *, marker: str, force: bool = False) -> Iterator[Path]:
    """Yield an empty directory that takes the name ``destination`` when the block succeeds.

    Args:
        destination: Final name; its parents are made as needed.
        marker: A file that a directory of this kind holds (``otter_config.json``). An existing
            directory without it is never replaced, whatever ``force`` says, unless it is empty.
        force: Replace an existing directory, after success.

    Raises:
        OtterError: ``destination`` exists and may not be replaced, has appeared while the block
            ran, or cannot be written.
    """
    check_replaceable(destination, marker=marker, force=force)
    destination = destination.resolve()  # "." and "x/.." have no name of their own
    with writing(destination):
        destination.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(destination)
        _remove_replaced(destination, marker)
        temporary, descriptor = create_partial(destination, directory=True)
        try:
            yield temporary
            _publish(temporary, destination, marker=marker, force=force)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            os.close(descriptor)


def check_replaceable(destination: Path, *, marker: str, force: bool) -> None:
    """Refuse early, before any work is done; see `output_directory`."""
    _recover(destination)
    if destination.is_dir() and not any(destination.iterdir()):
        return
    if not (destination.exists() or destination.is_symlink()):
        return
    if not force:
        raise OtterError(f"{destination} exists; choose another name, or replace it with --force")
    if destination.is_symlink() or not (destination / marker).is_file():
        raise OtterError(
            f"{destination} is not a directory with {marker}, so --force does not replace it; "
            "choose another name"
        )
    with _held(destination):
        pass


@contextlib.contextmanager
def _held(destination: Path) -> Iterator[None]:
    """Hold a directory that is to be replaced.

    Raises:
        OtterError: Another process holds it.
    """
    descriptor = os.open(destination, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if not hold(descriptor):
            raise OtterError(
                f"{destination} is in use by another process, so it is not replaced; wait for its "
                "end, or choose another name"
            )
        yield
    finally:
        os.close(descriptor)


def _publish(temporary: Path, destination: Path, *, marker: str, force: bool) -> None:
    """Give ``temporary`` the name ``destination``; what lies there is kept or moved aside."""
    try:
        temporary.rename(destination)  # replaces nothing but an empty directory
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        if not force:
            raise OtterError(
                f"{destination} has appeared while this command worked; it is kept, and the result "
                "is not. Choose another name, or replace it with --force"
            ) from None
        check_replaceable(destination, marker=marker, force=True)
        _replace(temporary, destination)


def _replace(temporary: Path, destination: Path) -> None:
    """Rename ``temporary`` to ``destination``, whose directory gets another name."""
    with _held(destination):
        if not _exchange(temporary, destination):
            # Two calls: `_recover` makes good what a kill between them leaves behind.
            aside = temporary.with_suffix(".old")
            destination.rename(aside)
            try:
                temporary.rename(destination)
            except OSError:
                aside.rename(destination)
                raise
            shutil.rmtree(aside, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one call; False where the system or its file system cannot."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    sys.audit("os.rename", os.fspath(one), os.fspath(other), -1, -1)  # as `os.rename` says it
    names = os.fsencode(one), os.fsencode(other)
    if renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), os.fspath(other))


def _recover(destination: Path) -> None:
    """Give a directory its name back, if a process died between the two renames of `_replace`."""
    for old, _ in held_leftovers(destination, "old"):
        if not (destination.exists() or destination.is_symlink()):
            with contextlib.suppress(OSError):
                old.rename(destination)


def _remove_replaced(destination: Path, marker: str) -> None:
    """Remove what `_replace` moved aside, if its process died before it could."""
    for old, _ in held_leftovers(destination, "old"):
        if (destination / marker).is_file():
            shutil.rmtree(old, ignore_errors=True)
