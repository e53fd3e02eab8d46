"""What this machine has, for tests that need a device or its absence."""

from __future__ import annotations

from pathlib import Path

import pytest

from otter_export.cuda import CudaDevice, gpu_capabilities
from otter_export.errors import EngineError, MissingDependencyError
from otter_export.manifest import EngineManifest


def has_gpu() -> bool:
    """Whether CUDA opens a device here."""
    try:
        CudaDevice()
    except (EngineError, MissingDependencyError):
        return False
    return True


def skip_unless_built_for_this_gpu(directory: Path) -> None:
    """Skip where a builder does not know the GPU at hand, as TensorRT-RTX does not know 9.0."""
    built_for = EngineManifest.load(directory).built_for.compute_capabilities
    here = gpu_capabilities()[0]
    if built_for and here not in built_for:
        pytest.skip(f"the GPU at hand is {here}; the builder builds for {', '.join(built_for)}")
