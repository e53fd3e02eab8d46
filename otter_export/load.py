"""`load_engine`: from an engine directory, or a checkpoint, to something that decodes."""

from __future__ import annotations

from pathlib import Path

from otter_export.config import FILE_NAME as CONFIG_FILE
from otter_export.engine_digest import check_engine
from otter_export.errors import MissingDependencyError
from otter_export.manifest import FILE_NAME as ENGINE_FILE
from otter_export.runtime.engine import Engine
from otter_export.runtime.load import checked_threads, open_engine


def load_engine(
    directory: str | Path,
    *,
    provider: str | None = None,
    threads: int | None = None,
    sha256: str | None = None,
) -> Engine:
    """Load an engine directory, as ``otter-export build`` writes it, or a checkpoint directory.

    A checkpoint runs in torch as it is (needs the extra ``train``): no build, but slower on the CPU
    than an ``onnx`` engine, and all of torch in memory.

    Args:
        directory: The engine directory, or a checkpoint directory.
        provider: ``cpu`` or ``cuda``; None takes what the engine was built for, and for a
            checkpoint a GPU if there is one.
        threads: Threads of one forward pass on the CPU; None takes ``OMP_NUM_THREADS`` if it is
            set, as numeric programs do, and else every core.
        sha256: Load this engine and no other: the digest that `inspect --sha256` printed when it
            was trusted (docs/security.md). Every file is read once more for it.

    Raises:
        EngineError: The directory is not an engine, is incomplete, or its model does not match its
            ``engine.json``; or the device is missing, wrong or too small; or it is not that of
            ``sha256``.
        CheckpointError, ConfigError: The checkpoint is not a valid one.
        UnsupportedError: Nothing runs its target.
        MissingDependencyError: The library that does is not installed.
        RequestError: An option is out of range.
    """
    path = Path(directory)
    if sha256 is not None:
        check_engine(path, sha256)
    if not (path / CONFIG_FILE).is_file() or (path / ENGINE_FILE).is_file():
        return open_engine(path, provider=provider, threads=threads)
    chosen = checked_threads(provider, threads)
    try:
        from otter_export.modeling.torch_engine import load_checkpoint
    except ModuleNotFoundError as error:
        name = error.name or "?"
        if name.startswith("otter_export"):
            raise
        raise MissingDependencyError(name, "train", "running a checkpoint") from error
    return load_checkpoint(path, provider, chosen)
