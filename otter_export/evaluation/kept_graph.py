"""The graph of a TensorRT engine, which ``--keep-onnx`` leaves in it and ``verify`` reads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from otter_export.cuda import CudaDevice
from otter_export.errors import EngineError, UnsupportedError
from otter_export.evaluation.subject import Options
from otter_export.manifest import EngineManifest
from otter_export.runtime.executors.tensorrt import GRAPH_FILE
from otter_export.runtime.executors.tensorrt_library import MODULES


def verifiable(
    directory: Path, manifest: EngineManifest, options: Options
) -> tuple[EngineManifest, Options]:
    """The manifest and options with which the checks look at an engine.

    A plan's weights cannot be read back, so the checks of files and weights read the graph that
    TensorRT was given. ``--provider`` says what computes: the plan on a GPU, or the graph on the
    CPU.

    Raises:
        UnsupportedError: The engine is not one that the checks can read.
        EngineError: There is no GPU, and the CPU was not asked for.
    """
    if manifest.target == "onnx":
        return manifest, options
    if manifest.built_for.builder not in MODULES:
        raise UnsupportedError(
            f"{directory} is of target {manifest.target} and runs in TensorRT-LLM, which verify "
            "does not drive; see docs/tensorrt_llm.md"
        )
    if not (directory / GRAPH_FILE).is_file():
        raise UnsupportedError(
            f"{directory} has no {GRAPH_FILE}; verify reads the graph that TensorRT was given: "
            "build the engine with --keep-onnx"
        )
    if options.provider is None:
        try:
            CudaDevice()
        except EngineError as error:
            raise EngineError(
                f"{error}; or verify the engine's graph on the CPU: --provider cpu"
            ) from None
    return dataclasses.replace(manifest, model_file=GRAPH_FILE), options
