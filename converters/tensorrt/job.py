"""The job of the builder's process and its answer: plain data, as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from otter_export.converters.tensorrt.options import EngineShapes

#: Candidates that most steps have; where the range allows it, tree steps are tuned for them.
_USUAL_CANDIDATES = 8


@dataclasses.dataclass(frozen=True)
class Profile:
    """Ranges of the dynamic dimensions for which the engine is optimised.

    Args:
        name: What it is for.
        least, best, most: Size of each named dimension.
    """

    name: str
    least: Mapping[str, int]
    best: Mapping[str, int]
    most: Mapping[str, int]

    def to_json(self) -> dict[str, Any]:
        """As in ``engine.json``."""
        return {"name": self.name, "min": self.least, "opt": self.best, "max": self.most}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Profile:
        """The reverse."""
        return cls(data["name"], data["min"], data["opt"], data["max"])


def profiles(shapes: EngineShapes) -> tuple[Profile, ...]:
    """One profile for chunks of prompts, one for steps of candidates.

    Both keep up to as many rows as there are candidates: logits of a whole chunk of prompt would
    need gigabytes of activations that no decoding reads.
    """
    batch, step, kept = shapes.max_batch_size, shapes.max_step, shapes.max_candidates
    least = {"batch": 1, "step": 1, "kept": 1}
    usual = min(_USUAL_CANDIDATES, kept)
    prefill = Profile(
        "prefill",
        least,
        {"batch": 1, "step": step, "kept": 1},
        {"batch": batch, "step": step, "kept": kept},
    )
    tree = Profile(
        "tree",
        least,
        {"batch": batch, "step": usual, "kept": usual},
        {"batch": batch, "step": kept, "kept": kept},
    )
    return prefill, tree


@dataclasses.dataclass(frozen=True)
class Job:
    """One build.

    Args:
        library: The Python module: ``tensorrt`` or ``tensorrt_rtx``.
        model: Path of the ONNX file; its external data lies beside it.
        engine: Path of the plan to write.
        profiles: Optimisation profiles.
        compute_capabilities: As ``8.9``; empty leaves the library's default.
        cubins: Folder of the fused projection's kernels, with which it is registered before
            parsing; a builder on a GPU may run them for timing. None: no plugin.
    """

    library: str
    model: str
    engine: str
    profiles: tuple[Profile, ...]
    compute_capabilities: tuple[str, ...]
    cubins: str | None

    def to_json(self) -> dict[str, Any]:
        """For the command line of the process."""
        return {**dataclasses.asdict(self), "profiles": [p.to_json() for p in self.profiles]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        """The reverse."""
        fields = dict(data)
        fields["profiles"] = tuple(Profile.from_json(p) for p in data["profiles"])
        fields["compute_capabilities"] = tuple(data["compute_capabilities"])
        return cls(**fields)


@dataclasses.dataclass(frozen=True)
class Built:
    """What the process found and made.

    Args:
        version: Of the library.
        layers: Number of layers of the parsed network by TensorRT's type, as ``PLUGIN_V3``.
        inputs, outputs: ``(name, dtype, shape)`` of the parsed network; -1 is a dynamic size.
        plan_bytes: Size of the plan.
        parse_seconds, build_seconds: What it took.
        peak_memory_bytes: Largest resident size of the process, mapped weights included.
    """

    version: str
    layers: Mapping[str, int]
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    plan_bytes: int
    parse_seconds: float
    build_seconds: float
    peak_memory_bytes: int

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Built:
        """From the process's answer."""
        fields = dict(data)
        for side in ("inputs", "outputs"):
            fields[side] = tuple((n, d, tuple(s)) for n, d, s in data[side])
        return cls(**fields)
