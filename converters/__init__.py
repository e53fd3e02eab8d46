"""Targets of a build, and the model repository that serves an engine.

Installed as ``otter_export.converters``. A new target is a file or a folder here and a line below;
`otter_export.converters.target` has its contract. Importing this package stays cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from otter_export.base_model import BaseModel
from otter_export.config import OtterConfig
from otter_export.converters.target import Target
from otter_export.errors import UnsupportedError
from otter_export.registry import Registry

TARGETS: Registry[Target] = Registry("target", extra="build")
TARGETS.register("onnx", "otter_export.converters.onnx:TARGET")
TARGETS.register("trt", "otter_export.converters.tensorrt.target:TARGET")
TARGETS.register("trtllm", "otter_export.converters.tensorrt_llm.pytorch:TARGET")
TARGETS.register("vllm", "otter_export.converters.vllm:TARGET")

#: What a target refuses of a checkpoint that opens; `insert` asks before anything is trained, so
#: these import no library that builds. Target onnx builds every checkpoint that opens.
CHECKS: Registry[Callable[[BaseModel, OtterConfig], object]] = Registry("check of a checkpoint")
CHECKS.register("trt", "otter_export.converters.tensorrt.builders:check_heads")
CHECKS.register("trtllm", "otter_export.converters.tensorrt_llm.config:check_model")
CHECKS.register("vllm", "otter_export.plugins.vllm.bases:check_servable")


def refusals(base: BaseModel, config: OtterConfig) -> Iterator[tuple[str, str]]:
    """``(target, why)`` of each target that does not build a base with this channel."""
    for name in CHECKS:
        try:
            CHECKS.load(name)(base, config)
        except UnsupportedError as error:
            yield name, str(error)
