"""`load_engine`: from an engine directory, or a checkpoint, to something that decodes."""

from __future__ import annotations

import os
from pathlib import Path

from otter_export.config import FILE_NAME as CONFIG_FILE
from otter_export.errors import RequestError
from otter_export.manifest import FILE_NAME as ENGINE_FILE
from otter_export.manifest import EngineManifest
from otter_export.runtime.backends import BACKENDS, CHECKPOINT_BACKENDS
from otter_export.runtime.engine import Engine

PROVIDERS = ("cpu", "cuda")


def load_engine(
    directory: str | Path, *, provider: str | None = None, threads: int | None = None
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

    Raises:
        EngineError: The directory is not an engine, is incomplete, or its model does not match its
            ``engine.json``; or the device is missing, wrong or too small.
        CheckpointError, ConfigError: The checkpoint is not a valid one.
        UnsupportedError: There is no backend for its target.
        MissingDependencyError: The backend's library is not installed.
        RequestError: An option is out of range.
    """
    if provider is not None and provider not in PROVIDERS:
        raise RequestError(f"provider must be one of {', '.join(PROVIDERS)}, got {provider!r}")
    if threads is not None and (type(threads) is not int or not 1 <= threads <= 1024):
        raise RequestError(f"threads must be an integer from 1 to 1024, got {threads!r}")
    path = Path(directory)
    chosen = threads or _environment_threads()
    if (path / CONFIG_FILE).is_file() and not (path / ENGINE_FILE).is_file():
        return CHECKPOINT_BACKENDS.load("torch")(path, provider, chosen)
    manifest = EngineManifest.load(path)
    load = BACKENDS.load(manifest.target)
    return load(path, manifest, provider or manifest.execution_provider, chosen)


def _environment_threads() -> int | None:
    """``OMP_NUM_THREADS`` as a number; ONNX Runtime itself does not look at it."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    return int(value) if value.isdecimal() and 1 <= int(value) <= 1024 else None
