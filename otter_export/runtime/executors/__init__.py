"""Executors of engines: one library a file, looked up by the engine's target.

A new one is a file here with a `load` that makes a `StepEngine` of an executor, one line below and
one test.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from otter_export.manifest import EngineManifest
from otter_export.registry import Registry
from otter_export.runtime.engine import Engine

#: ``(directory, manifest, provider, threads) -> Engine``.
Loader = Callable[[Path, EngineManifest, str, int | None], Engine]

EXECUTORS: Registry[Loader] = Registry("backend for target")
EXECUTORS.register("onnx", "otter_export.runtime.executors.onnxruntime:load")
EXECUTORS.register("trt", "otter_export.runtime.executors.tensorrt:load")
EXECUTORS.register("trtllm", "otter_export.runtime.executors.tensorrt_llm:load")
EXECUTORS.register("vllm", "otter_export.runtime.executors.vllm:load")
