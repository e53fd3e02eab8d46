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
BACKENDS.register("trt", "otter_export.runtime.backends.tensorrt:load")
BACKENDS.register("trtllm", "otter_export.runtime.backends.tensorrt_llm:load")

#: ``(directory, provider, threads) -> Engine``.
CheckpointLoader = Callable[[Path, str | None, int | None], Engine]

#: What runs a checkpoint that was not built into an engine.
CHECKPOINT_BACKENDS: Registry[CheckpointLoader] = Registry("backend for checkpoints", extra="train")
CHECKPOINT_BACKENDS.register("torch", "otter_export.modeling.torch_engine:load_checkpoint")
