"""Target ``trt``: a TensorRT engine, made by the builder that is at hand (docs/tensorrt.md)."""

from __future__ import annotations

import dataclasses
import importlib

from otter_export.checkpoint import Checkpoint
from otter_export.converters.target import Availability, BuildPlan, BuildRequest
from otter_export.converters.tensorrt.builders import (
    BUILDERS,
    LlmBuilder,
    NativeBuilder,
    check_heads,
    choose_builder,
    require_usable,
)
from otter_export.converters.tensorrt.options import (
    TensorRTOptions,
    engine_shapes,
    parse_capabilities,
)
from otter_export.converters.tensorrt_llm import engine as tensorrt_llm
from otter_export.errors import MissingDependencyError, UnsupportedError
from otter_export.precision import TENSORRT, choose_precision


@dataclasses.dataclass(frozen=True)
class TensorRTTarget:
    """TensorRT, TensorRT-RTX or TensorRT-LLM; fp16, bf16, and int8 or int4 weights."""

    name: str = "trt"
    summary: str = "TensorRT on an NVIDIA GPU; fp16, bf16, and int8 or int4 weights"
    precisions: tuple[str, ...] = tuple(TENSORRT)
    options: type[TensorRTOptions] = TensorRTOptions

    def availability(self) -> tuple[Availability, ...]:
        """Each builder, in the order in which ``auto`` looks."""
        return tuple(builder.availability() for builder in BUILDERS.values())

    def plan(self, checkpoint: Checkpoint, request: BuildRequest) -> BuildPlan:
        """Plan the build by the chosen builder.

        Raises:
            OtterError: The checkpoint, the request or this machine does not allow it.
        """
        options = request.options_as(TensorRTOptions)
        choose_precision(TENSORRT, request.precision, "target trt")
        # What is wrong everywhere comes before what is missing here.
        engine_shapes(checkpoint, request)
        if options.sm is not None:
            parse_capabilities(options.sm)
        builder = choose_builder(options.builder)
        if isinstance(builder, LlmBuilder):
            return tensorrt_llm.plan(checkpoint, request, builder.availability())
        _refuse_llm_options(options, builder.name)
        return _native_plan(builder, checkpoint, request)


TARGET = TensorRTTarget()


def _native_plan(
    builder: NativeBuilder, checkpoint: Checkpoint, request: BuildRequest
) -> BuildPlan:
    """Refuse what is impossible in milliseconds, then plan the build.

    Raises:
        MissingDependencyError: What builds graphs is not installed.
    """
    require_usable(builder.availability())
    capabilities = builder.target_capabilities(request)
    check_heads(checkpoint.base)
    try:
        # Not above: it takes seconds, and `list targets` needs none of it.
        native = importlib.import_module("otter_export.converters.tensorrt.native")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("otter_export"):
            raise
        raise MissingDependencyError(error.name or "?", "build", "target 'trt'") from error
    plan: BuildPlan = native.plan(builder, capabilities, checkpoint, request)
    return plan


def _refuse_llm_options(options: TensorRTOptions, builder: str) -> None:
    """What only TensorRT-LLM knows is not silently ignored by the others."""
    if options.tensor_parallel != 1:
        flag = f"--tensor-parallel {options.tensor_parallel}"
    elif options.checkpoint_only:
        flag = "--checkpoint-only"
    else:
        return
    raise UnsupportedError(f"{flag} belongs to --builder tensorrt-llm, this is {builder}")
