"""The backend of target ``trt``: TensorRT or TensorRT-RTX, whichever built the engine."""

from __future__ import annotations

from pathlib import Path

from otter_export.errors import EngineError
from otter_export.manifest import EngineManifest
from otter_export.runtime.backends import tensorrt_llm
from otter_export.runtime.backends.device import open_device
from otter_export.runtime.backends.in_place import InPlaceEngine
from otter_export.runtime.backends.in_place_contract import Limits
from otter_export.runtime.backends.tensorrt_executor import TensorRTExecutor
from otter_export.runtime.backends.tensorrt_library import (
    check_capability,
    import_library,
    load_plan,
)

#: The graph that TensorRT was given; ``build --keep-onnx`` leaves it in the engine.
GRAPH_FILE = "model.onnx"


def load(
    directory: Path, manifest: EngineManifest, provider: str, threads: int | None
) -> InPlaceEngine:
    """Load a TensorRT engine onto the first CUDA device, or its graph onto the CPU.

    Args:
        directory: The engine directory.
        manifest: Its ``engine.json``.
        provider: ``cuda``; ``cpu`` runs the graph that TensorRT was given in ONNX Runtime, if it
            was kept. That is a check of the engine's numbers without a GPU, and slow.
        threads: Threads on the CPU.

    Raises:
        EngineError: Version, GPU, plan or manifest do not fit; the message says which.
        MissingDependencyError: TensorRT, or a library for the GPU's memory, is not installed.
        UnsupportedError: The engine is of TensorRT-LLM.
    """
    if manifest.options.get("builder") == tensorrt_llm.BUILDER:
        tensorrt_llm.load(directory, manifest, provider, threads)
    Limits.of(manifest)
    if provider == "cpu":
        return _load_graph(directory, manifest, threads)
    trt = import_library(manifest)
    device = open_device()
    check_capability(manifest, device.capability)
    plan = load_plan(directory, manifest, trt)
    return InPlaceEngine(directory, manifest, TensorRTExecutor(manifest, plan, device))


def _load_graph(directory: Path, manifest: EngineManifest, threads: int | None) -> InPlaceEngine:
    """The engine's ONNX graph in ONNX Runtime."""
    model = directory / GRAPH_FILE
    if not model.is_file():
        raise EngineError(
            f"{directory} is a TensorRT engine, which needs an NVIDIA GPU; to check its graph on "
            "the CPU, build it with --keep-onnx, and for serving there, with --target onnx"
        )
    from otter_export.runtime.backends.in_place_onnxruntime import load_onnx

    return load_onnx(directory, manifest, model, threads)
