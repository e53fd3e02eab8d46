"""The contract of a target: what an Otter checkpoint is built into.

`Target` is the contract between ``otter-export build`` and a converter. A target plans first (all
that can be checked or refused is, and nothing is written), then builds into an empty directory.
What only one target knows (ONNX Runtime's execution provider, TensorRT's batch size) are the fields
of a frozen dataclass of its own, `Target.options`; the command line makes options from them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from otter_export.checkpoint import Checkpoint
from otter_export.engine_io import TensorSpec
from otter_export.errors import UnsupportedError
from otter_export.manifest import EngineManifest

Progress = Callable[[int], None]
OptionsT = TypeVar("OptionsT")


def option(default: Any, description: str, *, flag: str | None = None) -> Any:
    """A field of a target's options.

    Args:
        default: A str, an int, a bool or None; its type is the option's (None: a text).
        description: For ``build --target NAME --help``.
        flag: Name on the command line; None makes it from the field's: ``max_batch_size`` is
            ``--max-batch-size``, and ``plugin`` with the default True is ``--no-plugin``.
    """
    return dataclasses.field(default=default, metadata={"description": description, "flag": flag})


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """Options of a target that has none of its own."""


@dataclasses.dataclass(frozen=True)
class BuildRequest:
    """What the user asks of a build.

    Args:
        precision: One of the target's precisions.
        max_sequence_length: Prompt and generated tokens together; None takes the target's default.
        options: An instance of the target's `Target.options`; None takes its defaults.
    """

    precision: str = "fp32"
    max_sequence_length: int | None = None
    options: object | None = None

    def options_as(self, expected: type[OptionsT]) -> OptionsT:
        """The options of a target, by their class.

        Raises:
            TypeError: They are another target's.
        """
        if self.options is None:
            return expected()
        if not isinstance(self.options, expected):
            raise TypeError(f"expected {expected.__name__}, got {type(self.options).__name__}")
        return self.options


@dataclasses.dataclass(frozen=True)
class Availability:
    """Whether one builder of a target can be used on this machine.

    Args:
        name: Of the builder; empty where the target has only one.
        usable: It can build here and now.
        version: Of the installed library; None if there is none.
        needs_gpu: It builds on the kind of GPU that the engine is for.
        note: What it builds; where it is not usable, what is missing and how to get it.
    """

    name: str
    usable: bool
    version: str | None
    needs_gpu: bool
    note: str


@dataclasses.dataclass(frozen=True)
class BuildPlan:
    """A checked build: what `write` will put into the engine directory.

    Args:
        weights: ``(name, dtype, shape, bytes)`` of every tensor that will be stored.
        inputs, outputs: The graph's I/O.
        details: Counts worth showing before a build: nodes, op types. ``next_step``, if there, is
            what is left for the user to do; shown at the end.
        write: Writes the engine's files into an empty directory and returns its manifest, which is
            then saved as ``engine.json``; called once, with a callback for the bytes written.
        rounds: How often the bytes of all weights are reported: as they are written, and once for
            each further work of such length, which is reported in shares of them.
    """

    weights: tuple[tuple[str, str, tuple[int, ...], int], ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    details: Mapping[str, Any]
    write: Callable[[Path, Progress | None], EngineManifest]
    rounds: int = 1

    @property
    def total_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(size for _, _, _, size in self.weights)


class Target(Protocol):
    """One way to build an engine.

    Args:
        name: As registered.
        summary: What it builds, in a line.
        precisions: What ``--precision`` accepts; the first is the default.
        options: Frozen dataclass of the options that are this target's own; see `option`.
    """

    name: str
    summary: str
    precisions: tuple[str, ...]
    options: type

    def availability(self) -> Sequence[Availability]:
        """The builders behind this target, and whether each can be used here."""
        ...

    def plan(self, checkpoint: Checkpoint, request: BuildRequest) -> BuildPlan:
        """Check a request and plan its build.

        Raises:
            OtterError: The checkpoint or the request cannot be built; says what can.
        """
        ...


def max_sequence_length(
    checkpoint: Checkpoint, request: BuildRequest, default: int | None = None
) -> int:
    """The longest sequence of a build, at most what the base's positions allow.

    Args:
        checkpoint: The checkpoint.
        request: What the user asks.
        default: What a target takes unasked; None takes all of the base's positions.

    Raises:
        UnsupportedError: More was asked for.
    """
    limit = checkpoint.base.dimensions.max_position_embeddings
    wanted = request.max_sequence_length
    if wanted is None:
        return limit if default is None else min(default, limit)
    if not 1 <= wanted <= limit:
        raise UnsupportedError(
            f"--max-seq-len {wanted}: the base has {limit} positions; choose 1 to {limit}"
        )
    return wanted
