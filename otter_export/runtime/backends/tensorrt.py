"""The backend of target ``trt``: TensorRT or TensorRT-RTX, whichever built the engine."""

from __future__ import annotations

from pathlib import Path

from otter_export.errors import EngineError
from otter_export.manifest import EngineManifest
from otter_export.runtime.backends.device import open_device
from otter_export.runtime.backends.in_place import InPlaceEngine
from otter_export.runtime.backends.in_place_contract import Limits
from otter_export.runtime.backends.tensorrt_executor import TensorRTExecutor
from otter_export.runtime.backends.tensorrt_library import (
    check_capability,
    import_library,
    load_plan,
)


def load(
    directory: Path, manifest: EngineManifest, provider: str, threads: int | None
) -> InPlaceEngine:
    """Load a TensorRT engine onto the first CUDA device.

    Args:
        directory: The engine directory.
        manifest: Its ``engine.json``.
        provider: ``cuda``.
        threads: Not used: the work is the GPU's.

    Raises:
        EngineError: Version, GPU, plan or manifest do not fit; the message says which.
        MissingDependencyError: TensorRT, or a library for the GPU's memory, is not installed.
        UnsupportedError: The engine is of TensorRT-LLM.
    """
    if provider != "cuda":
        raise EngineError(
            f"a TensorRT engine runs on an NVIDIA GPU only, not on provider {provider!r}; for the "
            "CPU, build with --target onnx"
        )
    Limits.of(manifest)
    trt = import_library(manifest)
    device = open_device()
    check_capability(manifest, device.capability)
    plan = load_plan(directory, manifest, trt)
    return InPlaceEngine(directory, manifest, TensorRTExecutor(manifest, plan, device))
