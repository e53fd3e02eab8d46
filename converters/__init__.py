"""Targets of a build, and the model repository that serves an engine.

Installed as ``otter_export.converters``. A new target is a file or a folder here and a line below;
`otter_export.converters.target` has its contract. Importing this package stays cheap.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from otter_export.checkpoint import BaseModel
from otter_export.converters.target import Target
from otter_export.errors import UnsupportedError
from otter_export.registry import Registry

TARGETS: Registry[Target] = Registry("target", extra="build")
TARGETS.register("onnx", "otter_export.converters.onnx:TARGET")
TARGETS.register("trt", "otter_export.converters.tensorrt.target:TARGET")
TARGETS.register("trtllm", "otter_export.converters.tensorrt_llm.pytorch:TARGET")

#: What a target refuses of a base that opens, beyond its name; `insert` asks before anything is
#: trained, so these import no library that builds. Target onnx builds every base that opens.
BASE_CHECKS: Registry[Callable[[BaseModel], None]] = Registry("base check")
BASE_CHECKS.register("trt", "otter_export.converters.tensorrt.builders:check_heads")
BASE_CHECKS.register("trtllm", "otter_export.converters.tensorrt_llm.config:check_base")


def refusals(base: BaseModel) -> Iterator[tuple[str, str]]:
    """``(target, why)`` of each target that does not build a base."""
    for name in BASE_CHECKS:
        try:
            BASE_CHECKS.load(name)(base)
        except UnsupportedError as error:
            yield name, str(error)
