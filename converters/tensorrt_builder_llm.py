"""Builder ``tensorrt-llm``: the engine builder of TensorRT-LLM 1.0 to 1.2, on a GPU."""

from __future__ import annotations

import dataclasses

from otter_export.checkpoint import Checkpoint
from otter_export.converters.tensorrt_library import (
    building_module,
    gpu_capabilities,
    installed_version,
    parsed,
)
from otter_export.targets import Availability, BuildPlan, BuildRequest

_MODULE = "tensorrt_llm"
#: 1.3 removed the TensorRT backend.
_ACCEPTED = ((1, 0), (1, 3))
_INSTALL = (
    "pip install 'tensorrt-llm==1.2.1' from NVIDIA's package index, on a machine "
    "with a GPU (--checkpoint-only needs neither)"
)


@dataclasses.dataclass(frozen=True)
class LlmBuilder:
    """TensorRT-LLM's checkpoint, model file and engine."""

    name: str = "tensorrt-llm"

    def availability(self) -> Availability:
        """Whether its engine builder can be used here."""
        version = installed_version(_MODULE)
        usable, note = False, "builds TensorRT-LLM engines on the GPU of this machine"
        if version is None:
            note = f"the package {_MODULE} is not installed; {_INSTALL}"
        elif not _ACCEPTED[0] <= parsed(version) < _ACCEPTED[1]:
            note = (
                f"{_MODULE} {version} is installed, accepted is 1.0 to 1.2 (later ones have no "
                f"engines; for them: --target trtllm); {_INSTALL}"
            )
        elif not gpu_capabilities():
            note = (
                "it needs a GPU to build, and this machine has none; --checkpoint-only writes all "
                "but the engine"
            )
        else:
            usable = True
        return Availability(self.name, usable, version, True, note)

    def plan(self, checkpoint: Checkpoint, request: BuildRequest) -> BuildPlan:
        """Plan the build; see `otter_export.converters.tensorrt_llm`."""
        module = building_module("otter_export.converters.tensorrt_llm")
        plan: BuildPlan = module.plan(checkpoint, request, self.availability())
        return plan


BUILDER = LlmBuilder()
