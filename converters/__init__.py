"""Targets of a build, and the model repository that serves an engine.

Installed as ``otter_export.converters``. A new target is a file or a folder here and a line below;
`otter_export.converters.target` has its contract. Importing this package stays cheap.
"""

from __future__ import annotations

from otter_export.converters.target import Target
from otter_export.registry import Registry

TARGETS: Registry[Target] = Registry("target", extra="build")
TARGETS.register("onnx", "otter_export.converters.onnx:TARGET")
TARGETS.register("trt", "otter_export.converters.tensorrt.target:TARGET")
TARGETS.register("trtllm", "otter_export.converters.tensorrt_llm.pytorch:TARGET")
