"""Directories of target ``vllm``: they run in vLLM, never here."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from otter_export.errors import UnsupportedError
from otter_export.manifest import EngineManifest


def load(directory: Path, manifest: EngineManifest, provider: str, threads: int | None) -> NoReturn:
    """Say what runs it instead.

    Raises:
        UnsupportedError: Always.
    """
    raise UnsupportedError(
        f"{directory} runs in vLLM (vllm serve {directory}), not here; see docs/vllm.md. To run "
        "the model here, build it with --target onnx"
    )
