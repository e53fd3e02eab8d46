"""Target ``trt``: a TensorRT engine, made by the builder that is at hand (docs/tensorrt.md)."""

from __future__ import annotations

import dataclasses

from otter_export.checkpoint import Checkpoint
from otter_export.converters.tensorrt_builders import BUILDERS, choose_builder
from otter_export.converters.tensorrt_options import (
    PRECISIONS,
    TensorRTOptions,
    engine_shapes,
    parse_capabilities,
)
from otter_export.errors import UnsupportedError
from otter_export.targets import Availability, BuildPlan, BuildRequest


@dataclasses.dataclass(frozen=True)
class TensorRTTarget:
    """TensorRT, TensorRT-RTX or TensorRT-LLM; fp16, bf16, and int8 or int4 weights."""

    name: str = "trt"
    summary: str = "TensorRT on an NVIDIA GPU; fp16, bf16, and int8 or int4 weights"
    precisions: tuple[str, ...] = PRECISIONS
    options: type[TensorRTOptions] = TensorRTOptions

    def availability(self) -> tuple[Availability, ...]:
        """Each builder, in the order in which ``auto`` looks."""
        return tuple(BUILDERS.load(name).availability() for name in BUILDERS)

    def plan(self, checkpoint: Checkpoint, request: BuildRequest) -> BuildPlan:
        """Plan the build by the chosen builder.

        Raises:
            OtterError: The checkpoint, the request or this machine does not allow it.
        """
        options = request.options_as(TensorRTOptions)
        if request.precision not in PRECISIONS:
            raise UnsupportedError(
                f"--precision {request.precision} is not available for target trt; available: "
                f"{', '.join(PRECISIONS)}"
            )
        # What is wrong everywhere comes before what is missing here.
        engine_shapes(checkpoint, request)
        if options.sm is not None:
            parse_capabilities(options.sm)
        builder = choose_builder(options.builder)
        if builder.name != "tensorrt-llm":
            _refuse_llm_options(options, builder.name)
        return builder.plan(checkpoint, request)


TARGET = TensorRTTarget()


def _refuse_llm_options(options: TensorRTOptions, builder: str) -> None:
    """What only TensorRT-LLM knows is not silently ignored by the others."""
    if options.tensor_parallel != 1:
        flag = f"--tensor-parallel {options.tensor_parallel}"
    elif options.checkpoint_only:
        flag = "--checkpoint-only"
    else:
        return
    raise UnsupportedError(f"{flag} belongs to --builder tensorrt-llm, this is {builder}")
