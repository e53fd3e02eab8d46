"""Engines and models of TensorRT-LLM: they run in its own runtime, never here."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from otter_export.errors import UnsupportedError
from otter_export.manifest import EngineManifest

#: What an engine's option ``builder`` says then.
BUILDER = "tensorrt-llm"


def load(directory: Path, manifest: EngineManifest, provider: str, threads: int | None) -> NoReturn:
    """Say what runs it instead.

    Raises:
        UnsupportedError: Always.
    """
    how = " (in it: python -m otter_trtllm.client)" if manifest.target == "trtllm" else ""
    raise UnsupportedError(
        f"{directory} runs in TensorRT-LLM's own runtime{how}, not here; see "
        "docs/tensorrt_llm.md. To run the model here, build it with --target onnx"
    )
