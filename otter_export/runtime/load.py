"""`open_engine`: from an engine directory to something that decodes."""

from __future__ import annotations

import os
from pathlib import Path

from otter_export.arguments import integer
from otter_export.errors import RequestError
from otter_export.manifest import EngineManifest
from otter_export.quoting import quoted
from otter_export.runtime.engine import Engine
from otter_export.runtime.executors import EXECUTORS

PROVIDERS = ("cpu", "cuda")


def open_engine(
    directory: Path, *, provider: str | None = None, threads: int | None = None
) -> Engine:
    """Load an engine directory; see `otter_export.load_engine`, which takes checkpoints too.

    Raises:
        EngineError: The directory is not an engine, is incomplete, or its model does not match its
            ``engine.json``; or the device is missing, wrong or too small.
        UnsupportedError: Nothing runs its target.
        MissingDependencyError: The library that does is not installed.
        RequestError: An option is out of range.
    """
    chosen = checked_threads(provider, threads)
    manifest = EngineManifest.load(directory)
    load = EXECUTORS.load(manifest.target)
    return load(directory, manifest, provider or manifest.execution_provider, chosen)


def checked_threads(provider: str | None, threads: int | None) -> int | None:
    """The threads to use; None takes every core.

    Without a number it is ``OMP_NUM_THREADS``, as numeric programs do; ONNX Runtime itself does not
    look at it.

    Raises:
        RequestError: The provider or the number is out of range.
    """
    if provider is not None and not (isinstance(provider, str) and provider in PROVIDERS):
        raise RequestError(
            f"provider must be one of {', '.join(PROVIDERS)}, got {quoted(provider)}"
        )
    if threads is not None:
        threads = integer("threads", threads, least=1, most=1024, described="from 1 to 1024")
    value = os.environ.get("OMP_NUM_THREADS", "")
    if threads is None and value.isdecimal() and 1 <= int(value) <= 1024:
        return int(value)
    return threads
