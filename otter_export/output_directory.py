"""Write an output directory beside its final name, then rename it.

A process that is killed half-way leaves nothing under the final name, and an existing directory
is replaced only after its successor is complete.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from otter_export.errors import OtterError


@contextlib.contextmanager
def output_directory(destination: Path, *, marker: str, force: bool = False) -> Iterator[Path]:
    """Yield an empty directory that takes the name ``destination`` when the block succeeds.

    Args:
        destination: Final name; its parents are made as needed.
        marker: A file that a directory of this kind holds (``otter_config.json``). An existing
            directory without it is never replaced, whatever ``force`` says, unless it is empty.
        force: Replace an existing directory, after success.

    Raises:
        OtterError: ``destination`` exists and may not be replaced.
    """
    check_replaceable(destination, marker=marker, force=force)
    destination = destination.resolve()  # "." and "x/.." have no name of their own
    destination.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(
        tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".partial", dir=destination.parent)
    )
    try:
        temporary.chmod(0o777 & ~_umask())  # mkdtemp makes a private one
        yield temporary
        _replace(temporary, destination)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(destination: Path, *, marker: str, force: bool) -> None:
    """Refuse early, before any work is done; see `output_directory`."""
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


def _replace(temporary: Path, destination: Path) -> None:
    """Rename ``temporary`` to ``destination``, which moves aside first; undone on failure."""
    if not destination.exists():
        temporary.rename(destination)
        return
    old = Path(
        tempfile.mkdtemp(prefix=f".{destination.name}.", suffix=".old", dir=temporary.parent)
    )
    aside = old / "replaced"
    destination.rename(aside)
    try:
        temporary.rename(destination)
    except OSError:
        aside.rename(destination)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
