"""The builders behind target ``trt``: which of them can be used here, and which one is taken.

A builder is one file (``tensorrt_builder_*.py``) and one line below. The order of the lines is the
order in which ``--builder auto`` looks.
"""

from __future__ import annotations

from typing import Protocol

from otter_export.checkpoint import Checkpoint
from otter_export.errors import UnsupportedError
from otter_export.registry import Registry
from otter_export.targets import Availability, BuildPlan, BuildRequest


class Builder(Protocol):
    """One way to make the engine of target ``trt``.

    Args:
        name: As registered.
    """

    name: str

    def availability(self) -> Availability:
        """Whether it can be used here, from what is installed; imports no CUDA library."""
        ...

    def plan(self, checkpoint: Checkpoint, request: BuildRequest) -> BuildPlan:
        """Check a request and plan its build; see `otter_export.targets.Target.plan`.

        Called whether the builder is usable or not: it raises what is missing, unless the request
        needs less (a checkpoint for another machine).
        """
        ...


BUILDERS: Registry[Builder] = Registry("builder")
BUILDERS.register("tensorrt-llm", "otter_export.converters.tensorrt_builder_llm:BUILDER")
BUILDERS.register("tensorrt", "otter_export.converters.tensorrt_builder_datacentre:BUILDER")
BUILDERS.register("tensorrt-rtx", "otter_export.converters.tensorrt_builder_rtx:BUILDER")
AUTO = "auto"


def choose_builder(name: str) -> Builder:
    """The builder of that name; ``auto`` takes the first that is usable here.

    Raises:
        UnsupportedError: The name is unknown, or ``auto`` finds none.
    """
    if name != AUTO:
        if name not in BUILDERS:
            known = ", ".join((AUTO, *BUILDERS))
            raise UnsupportedError(f"--builder {name}: there is none of that name; known: {known}")
        return BUILDERS.load(name)
    builders = [BUILDERS.load(candidate) for candidate in BUILDERS]
    found = [builder.availability() for builder in builders]
    for builder, availability in zip(builders, found, strict=True):
        if availability.usable:
            return builder
    missing = "; ".join(f"{one.name}: {one.note}" for one in found)
    raise UnsupportedError(f"no builder of target trt is usable here. {missing}")


def require_usable(availability: Availability) -> None:
    """Raise what a builder lacks, before any work starts.

    Raises:
        UnsupportedError: It is not usable here.
    """
    if not availability.usable:
        raise UnsupportedError(f"--builder {availability.name}: {availability.note}")
