"""What the builders over TensorRT's own API share: ``tensorrt`` and ``tensorrt_rtx`` have the same.

`NativeBuilder` says what is installed and which compute capabilities are possible, before anything
heavy is imported; `otter_export.converters.tensorrt_native` plans the build.
"""

from __future__ import annotations

import dataclasses

from otter_export.checkpoint import Checkpoint
from otter_export.converters.tensorrt_library import (
    Version,
    building_module,
    gpu_capabilities,
    installed_version,
    parsed,
)
from otter_export.converters.tensorrt_options import TensorRTOptions, parse_capabilities
from otter_export.errors import UnsupportedError
from otter_export.targets import Availability, BuildPlan, BuildRequest

#: Head sizes for which TensorRT's fused attention has a kernel.
HEAD_SIZES = (16, 32, 64, 80, 128, 256)
#: Turing computes neither in bfloat16 nor with quantised weights (NVIDIA's support matrix).
_TURING, _TURING_PRECISIONS = "7.5", ("fp16",)


@dataclasses.dataclass(frozen=True)
class NativeBuilder:
    """A builder over the Python API of TensorRT.

    Args:
        name: As registered.
        module: The Python module of the library.
        accepted: From this version on, and below that one.
        accepted_text: The same in words.
        install: How to get it.
        needs_gpu: It builds for the GPU of this machine only.
        capabilities: Compute capabilities that it can build for; empty when `needs_gpu`.
        default_capabilities: Those of an engine for which none is named.
        advice: What to do for other GPUs.
    """

    name: str
    module: str
    accepted: tuple[Version, Version]
    accepted_text: str
    install: str
    needs_gpu: bool
    capabilities: tuple[str, ...]
    default_capabilities: tuple[str, ...]
    advice: str

    def availability(self) -> Availability:
        """Whether it can be used here, from what is installed."""
        version = installed_version(self.module)
        where = "on the GPU of this machine" if self.needs_gpu else "without a GPU"
        note = f"builds native engines {where}"
        usable = False
        if version is None:
            note = f"the package {self.module} is not installed; {self.install}"
        elif not self.accepted[0] <= parsed(version) < self.accepted[1]:
            note = (
                f"{self.module} {version} is installed, accepted is {self.accepted_text}; "
                f"{self.install}"
            )
        elif self.needs_gpu and not gpu_capabilities():
            note = "it needs a GPU to build, and this machine has none; " + self.advice
        else:
            usable = True
        return Availability(self.name, usable, version, self.needs_gpu, note)

    def plan(self, checkpoint: Checkpoint, request: BuildRequest) -> BuildPlan:
        """Refuse what is impossible in milliseconds, then plan the build.

        Raises:
            OtterError: The library, the checkpoint or the request does not allow it.
        """
        available = self.availability()
        if not available.usable:
            raise UnsupportedError(f"--builder {self.name}: {available.note}")
        self.target_capabilities(request)
        head = checkpoint.base.dimensions.head_dim
        if head not in HEAD_SIZES:
            sizes = ", ".join(map(str, HEAD_SIZES))
            raise UnsupportedError(
                f"{checkpoint.base.directory} has heads of size {head}; TensorRT's attention has "
                f"kernels for {sizes}. Build it with --target onnx"
            )
        # Not imported above: it takes seconds, and `list targets` needs none of it.
        native = building_module("otter_export.converters.tensorrt_native")
        plan: BuildPlan = native.plan(self, checkpoint, request)
        return plan

    def target_capabilities(self, request: BuildRequest) -> tuple[str, ...]:
        """Compute capabilities of a build, as ``8.9``.

        Raises:
            UnsupportedError: ``--sm`` names another, or is no list of numbers.
        """
        text = request.options_as(TensorRTOptions).sm
        if self.needs_gpu:
            return self._capability_at_hand(text)
        if text is None:
            return self.default_capabilities
        wanted = parse_capabilities(text)
        unknown = [one for one in wanted if one not in self.capabilities]
        if unknown:
            known = ", ".join(one.replace(".", "") for one in self.capabilities)
            raise UnsupportedError(
                f"--sm {text}: --builder {self.name} builds for {known}; {self.advice}"
            )
        if _TURING in wanted:
            _check_turing(text, request)
        return wanted

    def _capability_at_hand(self, text: str | None) -> tuple[str, ...]:
        """That of the first GPU; another cannot be asked for."""
        at_hand = gpu_capabilities()[:1]
        if text is not None and parse_capabilities(text) != at_hand:
            raise UnsupportedError(
                f"--sm {text}: the GPU at hand is {at_hand[0].replace('.', '')}; {self.advice}"
            )
        return at_hand


def _check_turing(text: str, request: BuildRequest) -> None:
    """Refuse what a GPU of compute capability 7.5 cannot do."""
    if request.precision not in _TURING_PRECISIONS:
        raise UnsupportedError(
            f"--sm {text}: compute capability 7.5 has no {request.precision}; leave 75 out, or "
            "choose --precision fp16"
        )
    if request.options_as(TensorRTOptions).plugin:
        raise UnsupportedError(
            f"--sm {text}: the fused projection needs 8.0 or later; leave 75 out or add --no-plugin"
        )
