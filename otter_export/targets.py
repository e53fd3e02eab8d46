"""Targets: what an Otter checkpoint is built into; a new one is a file in converters/ and a line.

`Target` is the contract between ``otter-export build`` and a converter. A target plans first (all
that can be checked or refused is, and nothing is written), then builds into an empty directory.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from otter_export.checkpoint import Checkpoint
from otter_export.errors import UnsupportedError
from otter_export.manifest import EngineManifest, TensorSpec
from otter_export.registry import Registry

Progress = Callable[[int], None]


@dataclasses.dataclass(frozen=True)
class BuildRequest:
    """What the user asks of a build.

    Args:
        precision: One of the target's precisions.
        execution_provider: ``cpu`` or ``cuda``.
        max_sequence_length: Prompt and generated tokens together; None takes the base's limit.
    """

    precision: str = "fp32"
    execution_provider: str = "cpu"
    max_sequence_length: int | None = None


@dataclasses.dataclass(frozen=True)
class BuildPlan:
    """A checked build: what `write` will put into the engine directory.

    Args:
        weights: ``(name, dtype, shape, bytes)`` of every tensor that will be stored.
        inputs, outputs: The graph's I/O.
        details: Counts worth showing before a build: nodes, op types.
        write: Writes the engine's files into an empty directory and returns its manifest, which is
            then saved as ``engine.json``; called once, with a callback for the bytes written.
    """

    weights: tuple[tuple[str, str, tuple[int, ...], int], ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    details: Mapping[str, Any]
    write: Callable[[Path, Progress | None], EngineManifest]

    @property
    def total_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(size for _, _, _, size in self.weights)


class Target(Protocol):
    """One way to build an engine."""

    name: str
    summary: str

    def plan(self, checkpoint: Checkpoint, request: BuildRequest) -> BuildPlan:
        """Check a request and plan its build.

        Raises:
            OtterError: The checkpoint or the request cannot be built; says what can.
        """
        ...


TARGETS: Registry[Target] = Registry("target", extra="build")
TARGETS.register("onnx", "otter_export.converters.onnx:TARGET")


def max_sequence_length(checkpoint: Checkpoint, request: BuildRequest) -> int:
    """The longest sequence of a build, at most what the base's positions allow.

    Raises:
        UnsupportedError: More was asked for.
    """
    limit = checkpoint.base.dimensions.max_position_embeddings
    wanted = request.max_sequence_length
    if wanted is None:
        return limit
    if not 1 <= wanted <= limit:
        raise UnsupportedError(
            f"--max-seq-len {wanted}: the base has {limit} positions; choose 1 to {limit}"
        )
    return wanted
