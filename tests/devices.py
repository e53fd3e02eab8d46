"""What this machine has, for tests that need a device or its absence."""

from __future__ import annotations

from otter_export.cuda import CudaDevice
from otter_export.errors import EngineError, MissingDependencyError


def has_gpu() -> bool:
    """Whether CUDA opens a device here."""
    try:
        CudaDevice()
    except (EngineError, MissingDependencyError):
        return False
    return True
