"""What runs an engine's model: one library per module, looked up by the engine's target."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from otter_export.manifest import EngineManifest
from otter_export.registry import Registry
from otter_export.runtime.engine import Engine

#: ``(directory, manifest, provider, threads) -> Engine``.
Loader = Callable[[Path, EngineManifest, str, int | None], Engine]

BACKENDS: Registry[Loader] = Registry("backend for target")
BACKENDS.register("onnx", "otter_export.runtime.backends.onnxruntime:load")
