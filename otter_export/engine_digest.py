"""The digest of an engine: one SHA-256 that stands for all of its files.

It is that of ``engine.json``, which holds the hash of every other file. The hashes alone prove
nothing to whoever does not trust the directory, for they come from it; a digest that was written
down elsewhere does.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from otter_export.errors import EngineError, RequestError
from otter_export.manifest import FILE_NAME, EngineManifest, describe_file

_DIGEST = re.compile(r"[0-9a-fA-F]{64}")


def engine_digest(directory: Path) -> str:
    """The digest of an engine directory, in lower case; ``sha256sum engine.json`` prints it too.

    The other files are not read.

    Raises:
        EngineError: The directory is not an engine, or is incomplete.
    """
    EngineManifest.load(directory)
    return hashlib.sha256((directory / FILE_NAME).read_bytes()).hexdigest()


def check_engine(
    directory: Path, sha256: str, progress: Callable[[int], None] | None = None
) -> None:
    """Check that a directory is the engine of a digest: every file as it was, and no other file.

    It holds for the moment of the check; the directory must not change until the engine is loaded.

    Args:
        directory: The engine directory.
        sha256: From `engine_digest`, of when the engine was trusted.
        progress: Called with the bytes that were read.

    Raises:
        RequestError: ``sha256`` is no digest.
        EngineError: The directory is not an engine, or is another one.
    """
    if not isinstance(sha256, str) or not _DIGEST.fullmatch(sha256):
        raise RequestError("sha256 must be 64 hexadecimal digits, as `inspect --sha256` prints")
    found = engine_digest(directory)
    if found != sha256.lower():
        raise EngineError(
            f"{directory} is not the engine that was asked for: the SHA-256 of its {FILE_NAME} is "
            f"{found}, expected {sha256.lower()}"
        )
    listed = {file.path: file for file in EngineManifest.load(directory).files}
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory).as_posix()
        if name not in listed and name != FILE_NAME and (path.is_symlink() or not path.is_dir()):
            raise EngineError(f"{path} is not of the engine that was asked for; remove it")
    for name, expected in listed.items():
        if describe_file(directory, name, progress).sha256 != expected.sha256:
            raise EngineError(
                f"{directory / name} is not of the engine that was asked for: its SHA-256 differs"
            )
