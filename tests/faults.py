"""Faults of the disk: a command runs in a child process, and its n-th change of files goes wrong.

Python announces every call that opens, renames or removes a file to audit hooks, before it is made:
a hook can let it fail as on a full disk, or end the process there. Writes into open files are not
announced; the system's own limit on the size of a file makes those fail, or kills the process.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from otter_export.cli import main

KILLED = 137
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink")


@dataclasses.dataclass(frozen=True)
class Fault:
    """What goes wrong.

    Args:
        kills: The process ends there; otherwise the call fails, as on a full disk.
        call: Number of the call that goes wrong, from 1; 0: none.
        size: No file grows beyond so many bytes; None: no limit.
    """

    kills: bool = False
    call: int = 0
    size: int | None = None


def run(root: Path, command: Callable[[], object], fault: Fault = Fault()) -> tuple[int, int]:
    """Run a command in a child process.

    Args:
        root: Changes of files below it count.
        command: Ends by SystemExit or returns; a fork keeps what the test has patched.
        fault: What goes wrong.

    Returns:
        Its exit status, `KILLED` if the fault ended it, and how many calls changed files.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _child(root, command, fault, writer)
    os.close(writer)
    with os.fdopen(reader) as counts:
        text = counts.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return KILLED if status == -signal.SIGXFSZ else status, int(text or 0)


def otter(*arguments: object) -> Callable[[], object]:
    """A command line of otter-export, for `run`."""
    return lambda: main([str(argument) for argument in arguments])


def tree(path: Path) -> dict[str, bytes] | None:
    """Names and contents of a directory, or None where there is none."""
    if not path.is_dir():
        return None
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def _child(root: Path, command: Callable[[], object], fault: Fault, writer: int) -> None:
    status, calls = 70, 0  # of an exception that no command may raise
    inside = str(root.resolve())

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal calls
        if not _changes(event, arguments, inside):
            return
        calls += 1
        if calls == fault.call:
            if fault.kills:
                os._exit(KILLED)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), arguments[0])

    try:
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):
            os.dup2(quiet, stream)
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115
        if fault.size is not None:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (fault.size, fault.size))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if fault.kills else signal.SIG_IGN)
        if "torch" in sys.modules:
            # A fork has none of its parent's threads, and would wait for them.
            sys.modules["torch"].set_num_threads(1)
        sys.addaudithook(hook)
        result = command()
        status = result if isinstance(result, int) else 0
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 0
    finally:
        os.write(writer, str(calls).encode())
        os._exit(status)


def _changes(event: str, arguments: tuple[Any, ...], inside: str) -> bool:
    """Whether an audit event is a change of a file below a directory."""
    if event == "open":
        return bool(arguments[2] & _WRITES) and _lies(arguments[0], inside)
    if event not in _CHANGES:
        return False
    # `shutil.rmtree` removes by name within an open directory; who else does, counts too.
    relative = event in ("os.remove", "os.rmdir") and arguments[1] != -1
    return relative or _lies(arguments[0], inside)


def _lies(path: object, inside: str) -> bool:
    return isinstance(path, str | os.PathLike) and str(path).startswith(inside)
