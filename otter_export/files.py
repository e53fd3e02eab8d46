"""Reading and writing of files that may be hostile, in use, or on a full disk.

What is read comes from strangers: only regular files are opened for it, and their size is bounded
before memory is taken. What is written goes to a new file beside its name, which is opened
exclusively under a name that nobody can foresee, then renamed: a name holds the old content or the
new, and nothing is written through a link that somebody planted there.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from otter_export.boundary import system_error
from otter_export.errors import OtterError

#: Of texts and settings that no caller knows a tighter limit for.
SETTINGS_LIMIT = 256 << 20
_BLOCK_BYTES = 4 << 20
#: Linux's request to share the blocks of another file.
_FICLONE = 0x4004_9409
#: The file that is written cannot grow.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_file(path: Path, error: type[OtterError] = OtterError) -> bool:
    """Whether a regular file is there; a name that no file can have, as one too long, is not there.

    Args:
        path: The name; links are followed.
        error: What is raised.

    Raises:
        OtterError: Something else has the name, or a link that leads nowhere: going on as if
            nothing were there would read a model without it. Of the class ``error``.
    """
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise error(
                f"{path} is a link that leads nowhere; fetch the file, or remove it"
            ) from None
        return False
    # A NUL or half of a surrogate pair.
    except ValueError:
        return False
    except OSError as reason:
        if reason.errno == errno.ENAMETOOLONG:
            return False
        raise error(system_error(reason, path)) from None
    if not stat.S_ISREG(status.st_mode):
        raise error(f"{path} is not a regular file; only regular files are read")
    return True


def is_directory(path: Path) -> bool:
    """Whether a directory is there; see `is_file`."""
    try:
        return path.is_dir()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return False
        raise


@contextlib.contextmanager
def open_regular(
    path: Path, limit: int | None = None, error: type[OtterError] = OtterError
) -> Iterator[BinaryIO]:
    """Open a regular file for reading; links are followed, but to nothing else.

    A pipe is not waited for, and a device is not read.

    Args:
        path: The file.
        limit: Largest accepted size in bytes.
        error: What is raised.

    Raises:
        FileNotFoundError: There is no such file; the caller knows what to do then.
        OtterError: It cannot be read, is no regular file, or is larger than ``limit``; of the
            class ``error``.
    """
    try:
        # Opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as reason:
        raise error(f"{path} cannot be read: {_reason(reason)}") from None
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise error(f"{path} is not a regular file; only regular files are read")
    with os.fdopen(descriptor, "rb") as file:
        if limit is not None and status.st_size > limit:
            raise error(f"{path} has {status.st_size} bytes; at most {limit} are read")
        yield file


def read_regular(
    path: Path, limit: int = SETTINGS_LIMIT, error: type[OtterError] = OtterError
) -> bytes:
    """The content of a regular file of at most ``limit`` bytes; see `open_regular`."""
    with open_regular(path, limit, error) as file:
        try:
            content = file.read(limit + 1)  # it may grow while it is read
        except OSError as reason:
            raise error(f"{path} cannot be read: {_reason(reason)}") from None
    if len(content) > limit:
        raise error(f"{path} has more than {limit} bytes; at most {limit} are read")
    return content


def copy_regular(
    source: Path,
    destination: Path,
    progress: Callable[[int], None] | None = None,
    *,
    limit: int | None = None,
    error: type[OtterError] = OtterError,
) -> None:
    """Copy a regular file, through links, to a name that does not exist yet.

    Args:
        source: The file.
        destination: Its copy.
        progress: Called with the number of bytes just copied.
        limit: Largest accepted size in bytes.
        error: What is raised if ``source`` cannot be read.

    Raises:
        OtterError: ``source`` is no such file, or ``destination`` cannot be written.
    """
    try:
        with (
            open_regular(source, limit, error) as reader,
            writing(destination),
            destination.open("xb") as writer,
        ):
            while block := reader.read(_BLOCK_BYTES):
                writer.write(block)
                if progress is not None:
                    progress(len(block))
    except FileNotFoundError:
        raise error(f"{source} does not exist") from None


def clone_regular(source: Path, destination: Path) -> bool:
    """Copy a regular file without copying its bytes, where the file system can share them.

    Later changes of one of the two are not seen in the other.

    Args:
        source: The file; links are followed.
        destination: A name that does not exist yet.

    Returns:
        Whether it could; if not, ``destination`` still does not exist.
    """
    try:
        with source.open("rb") as old, destination.open("xb") as new:
            try:
                fcntl.ioctl(new.fileno(), _FICLONE, old.fileno())
            except OSError:
                destination.unlink()
                return False
    except OSError:
        return False
    return True


def hard_link(source: Path, destination: Path) -> bool:
    """Give a regular file a second name; whoever writes into one of the two writes into both.

    Args:
        source: The file; links are followed.
        destination: A name that does not exist yet.

    Returns:
        Whether the system could: not from one file system to another.
    """
    try:
        os.link(source.resolve(), destination)
    except OSError:
        return False
    return True


def write_json(path: Path, data: object) -> None:
    """Write JSON that people may read, to a new file of a directory that is being made.

    Raises:
        OtterError: It cannot be written.
    """
    with writing(path):
        path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


@contextlib.contextmanager
def writing(path: Path, size: int = 0) -> Iterator[None]:
    """Turn a system error within the block into one line: the file, the reason, what to do.

    Args:
        path: What is written; named if the error does not name a file itself.
        size: About how many bytes; used to find the reason where a library has lost it.

    Raises:
        OtterError: An OSError was raised within the block.
    """
    try:
        yield
    except BrokenPipeError:
        raise  # a reader of the output that has gone; no file
    except OSError as error:
        # numpy counts what it has written, and drops the reason why it was less.
        cause = error if error.errno is not None else _lost_reason(path.parent, size) or error
        # Of a rename, the second is the name that was asked for.
        file = error.filename2 or error.filename
        name = file if isinstance(file, str | os.PathLike) else path
        if cause.errno in _FULL:
            name = path  # a copy may name the file that it reads
        raise OtterError(f"cannot write {system_error(cause, Path(name))}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file that takes the name ``path`` when the block succeeds.

    Leftovers of killed processes that were replacing the same name are removed.

    Raises:
        OtterError: It cannot be written.
    """
    with writing(path):
        remove_leftovers(path)
        temporary, descriptor = create_partial(path)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()  # errors of the last block come before the name is taken
                temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def check_writable(path: Path) -> None:
    """Refuse a name that `replacing` could not give a file, before the work for it is done.

    Raises:
        OtterError: A directory has it, or nothing can be made beside it.
    """
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
        partial, descriptor = create_partial(path)
        os.close(descriptor)
        partial.unlink()


def create_partial(path: Path, *, directory: bool = False) -> tuple[Path, int]:
    """Make a new, empty file or directory beside ``path``, and hold it.

    Returns:
        Its path, and a descriptor which says, as long as it is open, that its process lives: the
        system forgets it with the process, however that ends.

    Raises:
        OSError: It cannot be made.
    """
    while True:
        partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
        if directory:
            partial.mkdir()
            descriptor = os.open(partial, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        else:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(partial, flags, 0o666)
        if hold(descriptor) and _names(partial, descriptor):
            return partial, descriptor
        os.close(descriptor)  # taken for a leftover in the moment before it was held


def remove_leftovers(path: Path) -> None:
    """Remove what `create_partial` made beside ``path`` for processes that are gone."""
    for leftover, _ in held_leftovers(path, "partial"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):
                leftover.unlink()


def held_leftovers(path: Path, suffix: str) -> Iterator[tuple[Path, int]]:
    """Yield what processes that are gone left beside ``path``, one at a time and held.

    Args:
        path: The final name.
        suffix: ``partial`` or ``old``.
    """
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{16}}\.{suffix}")
    try:
        leftovers = sorted(p for p in path.parent.iterdir() if pattern.fullmatch(p.name))
    except OSError:
        return
    for leftover in leftovers:
        try:
            descriptor = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue  # a link, gone, or another user's
        try:
            status = os.fstat(descriptor)
            kind = stat.S_ISDIR(status.st_mode) or stat.S_ISREG(status.st_mode)
            mine = status.st_uid == os.geteuid()
            if kind and mine and hold(descriptor, unsure=False) and _names(leftover, descriptor):
                yield leftover, descriptor
        finally:
            os.close(descriptor)


def hold(descriptor: int, lock: int = fcntl.LOCK_EX, *, unsure: bool = True) -> bool:
    """Lock an open file or directory for this process, unless another holds it.

    Args:
        descriptor: Of the file; the lock ends when it is closed.
        lock: ``fcntl.LOCK_EX``, or ``LOCK_SH`` which several processes may have.
        unsure: The answer on file systems that have no locks.
    """
    try:
        fcntl.flock(descriptor, lock | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return unsure
    return True


def exclusive(directory: Path, use: str) -> contextlib.AbstractContextManager[None]:
    """Hold a directory during the block, so that two processes do not change it at a time.

    Args:
        directory: Which; nothing is held where there is none, which the reader will say.
        use: What other holders do, for the error: ``is being trained``.

    Raises:
        OtterError: Another process holds it.
    """
    return _held(directory, use, fcntl.LOCK_EX)


def steady(directory: Path, use: str) -> contextlib.AbstractContextManager[None]:
    """Hold a directory during the block, so that it stays as it is; others may hold it so as well.

    Args:
        directory: Which; nothing is held where there is none.
        use: What `exclusive` holders do, for the error.

    Raises:
        OtterError: Another process holds it by `exclusive`.
    """
    return _held(directory, use, fcntl.LOCK_SH)


@contextlib.contextmanager
def _held(directory: Path, use: str, lock: int) -> Iterator[None]:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        yield
        return
    try:
        if not hold(descriptor, lock):
            raise OtterError(
                f"{directory} {use} by another process; wait for its end, or use a copy"
            )
        yield
    finally:
        os.close(descriptor)


def _names(path: Path, descriptor: int) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(descriptor))
    except OSError:
        return False


def _lost_reason(directory: Path, size: int) -> OSError | None:
    """Why ``size`` bytes cannot be written into a directory, asked of the system."""
    try:
        partial, descriptor = create_partial(directory / "space")
    except OSError as error:
        return error
    try:
        os.posix_fallocate(descriptor, 0, max(size, 1))
    except OSError as error:
        return error
    finally:
        os.close(descriptor)
        partial.unlink(missing_ok=True)
    return None


def _reason(error: Exception) -> str:
    """What the system says and what to do, without the file, which the message has."""
    if isinstance(error, OSError) and error.errno is not None:
        return system_error(OSError(error.errno, error.strerror))
    return str(error)
