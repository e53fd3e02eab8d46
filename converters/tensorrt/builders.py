"""The builders behind target ``trt``: what each needs, and which one is taken.

A builder is a value below; their order is the one in which ``--builder auto`` looks. None imports
TensorRT: all is known from package metadata and the driver.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping

from otter_export.base_model import BaseModel
from otter_export.config import OtterConfig
from otter_export.converters.target import Availability, BuildRequest
from otter_export.converters.tensorrt.options import TensorRTOptions, parse_capabilities
from otter_export.cuda import gpu_capabilities
from otter_export.errors import UnsupportedError

Version = tuple[int, ...]
#: Head sizes for which TensorRT's fused attention has a kernel.
HEAD_SIZES = (16, 32, 64, 80, 128, 256)
#: Turing computes neither in bfloat16 nor with quantised weights (NVIDIA's support matrix).
_TURING, _TURING_PRECISIONS = "7.5", ("fp16",)


@dataclasses.dataclass(frozen=True)
class NativeBuilder:
    """A builder over TensorRT's own Python API, which ``tensorrt`` and ``tensorrt_rtx`` share.

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


_LLM_MODULE = "tensorrt_llm"
#: 1.3 removed the TensorRT backend.
_LLM_ACCEPTED = ((1, 0), (1, 3))
_LLM_INSTALL = (
    "pip install 'tensorrt-llm==1.2.1' from NVIDIA's package index, on a machine "
    "with a GPU (--checkpoint-only needs neither)"
)


@dataclasses.dataclass(frozen=True)
class LlmBuilder:
    """The engine builder of TensorRT-LLM 1.0 to 1.2, on a GPU."""

    name: str = "tensorrt-llm"

    def availability(self) -> Availability:
        """Whether its engine builder can be used here."""
        version = installed_version(_LLM_MODULE)
        usable, note = False, "builds TensorRT-LLM engines on the GPU of this machine"
        if version is None:
            note = f"the package {_LLM_MODULE} is not installed; {_LLM_INSTALL}"
        elif not _LLM_ACCEPTED[0] <= parsed(version) < _LLM_ACCEPTED[1]:
            note = (
                f"{_LLM_MODULE} {version} is installed, accepted is 1.0 to 1.2 (later ones have no "
                f"engines; for them: --target trtllm); {_LLM_INSTALL}"
            )
        elif not gpu_capabilities():
            note = (
                "it needs a GPU to build, and this machine has none; --checkpoint-only writes all "
                "but the engine"
            )
        else:
            usable = True
        return Availability(self.name, usable, version, True, note)


LLM = LlmBuilder()
#: TensorRT itself, on the kind of GPU that the engine is for. KVCacheUpdate and Attention with a
#: bool mask came with 10.15.
DATACENTRE = NativeBuilder(
    name="tensorrt",
    module="tensorrt",
    accepted=((10, 15), (12,)),
    accepted_text="10.15 or later, below 12",
    install="pip install 'tensorrt>=10.15,<12', on a machine with the engine's own kind of GPU",
    needs_gpu=True,
    capabilities=(),
    default_capabilities=(),
    advice="it builds for the GPU at hand; ahead of time, for others: --builder tensorrt-rtx",
)
#: TensorRT for RTX, ahead of time; needs no GPU. Compute capabilities are those of NVIDIA's support
#: matrix for 1.7. There is no 9.0.
RTX = NativeBuilder(
    name="tensorrt-rtx",
    module="tensorrt_rtx",
    accepted=((1, 7), (2,)),
    accepted_text="1.7 or later, below 2",
    install="pip install 'otter-export[trt]'",
    needs_gpu=False,
    capabilities=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
    # What an engine runs on when none is named; Turing has to be asked for.
    default_capabilities=("8.0", "8.6", "8.9", "12.0"),
    advice="for other GPUs (an H100 is 9.0) build on that machine with --builder tensorrt",
)

Builder = LlmBuilder | NativeBuilder
BUILDERS: Mapping[str, Builder] = {builder.name: builder for builder in (LLM, DATACENTRE, RTX)}
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
        return BUILDERS[name]
    found = [builder.availability() for builder in BUILDERS.values()]
    for availability in found:
        if availability.usable:
            return BUILDERS[availability.name]
    missing = "; ".join(f"{one.name}: {one.note}" for one in found)
    raise UnsupportedError(f"no builder of target trt is usable here. {missing}")


def check_heads(base: BaseModel, config: OtterConfig | None = None) -> None:
    """Refuse a base for whose attention TensorRT has no kernel; any channel has the same heads.

    Raises:
        UnsupportedError: Its heads have another size.
    """
    head = base.dimensions.head_dim
    if head not in HEAD_SIZES:
        sizes = ", ".join(map(str, HEAD_SIZES))
        raise UnsupportedError(
            f"{base.directory} has heads of size {head}; TensorRT's attention has "
            f"kernels for {sizes}. Build it with --target onnx"
        )


def require_usable(availability: Availability) -> None:
    """Raise what a builder lacks, before any work starts.

    Raises:
        UnsupportedError: It is not usable here.
    """
    if not availability.usable:
        raise UnsupportedError(f"--builder {availability.name}: {availability.note}")


def installed_version(module: str) -> str | None:
    """Version of the distribution that installs a top-level module; None if there is none."""
    if importlib.util.find_spec(module) is None:
        return None
    for name in importlib.metadata.packages_distributions().get(module, ()):
        return importlib.metadata.version(name)
    return None


def parsed(version: str) -> Version:
    """``1.7.1.116`` as ``(1, 7, 1, 116)``; what follows the numbers (``rc1``, ``+cu13``) is cut."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in release.group().split(".")) if release else ()
