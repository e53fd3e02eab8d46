"""From a source and a base to the plan of a checkpoint: a probe on the base's last state.

Any linear head ``W n + b`` on the base's final state is a channel that begins behind the last
layer, exactly (docs/checkpoint.md): ``P = R diag(gamma)``, ``gamma' = 1``, so ``n' = R n``.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from otter_export.base_model import BaseModel
from otter_export.channel_options import ChannelOptions
from otter_export.errors import CheckpointError
from otter_export.hub import find_base
from otter_export.importing import format_of
from otter_export.importing.source import Head, HeadOptions, Source, SourceFormat
from otter_export.insert import Insertion
from otter_export.insert import plan as insertion_plan


@dataclasses.dataclass(frozen=True)
class Import:
    """A checked plan.

    Args:
        source: Where the head comes from.
        format: Its format.
        base: What carries it.
        head: The head.
        insertion: What is to be written.
    """

    source: Source
    format: SourceFormat
    base: BaseModel
    head: Head
    insertion: Insertion

    @property
    def on_itself(self) -> bool:
        """Whether the source's own backbone is the base."""
        return self.base.directory.resolve() == self.source.path.resolve()


def plan(
    path: Path,
    destination: Path,
    *,
    base_name: str | None = None,
    options: HeadOptions | None = None,
    dtype: str = "F32",
    adapter: bool = False,
    force: bool = False,
) -> Import:
    """Check everything that headers tell, and read the head.

    Args:
        path: The source: a directory, or a safetensors file of heads.
        destination: Directory that `Insertion.write` will make.
        base_name: Directory or hub id of the base; None: the one that the source names, else the
            source itself.
        options: Of the signal.
        dtype: Of the inserted tensors; another than F32 rounds the head.
        adapter: Name the base in the checkpoint; do not copy it.
        force: Whether an existing checkpoint may be replaced.

    Raises:
        OtterError: The source, the base or the destination are unusable.
    """
    source = Source.open(path)
    form = format_of(source)
    name = base_name or _own_base(source)
    base = BaseModel.open(find_base(name))
    head = form.head(source, base, options or HeadOptions())
    channel = ChannelOptions(
        hidden_size=len(head.probe.rows),
        initialization="probe",
        signals=(head.signal,),
        dtype=dtype,
        first_layer=base.dimensions.num_hidden_layers,
    )
    insertion = insertion_plan(
        name, destination, channel, adapter=adapter, force=force, probe=head.probe
    )
    return Import(source, form, base, head, insertion)


def _own_base(source: Source) -> str:
    """The base that a source names, or itself.

    Raises:
        CheckpointError: It names none, and holds no model.
    """
    named = source.config.get("base_model_name_or_path")
    if isinstance(named, str) and named:
        return named
    if not source.path.is_dir() or "model_type" not in source.config:
        raise CheckpointError(f"{source.path} holds a head alone; name its base with --base")
    base = BaseModel.open(source.path)
    if not base.has(base.head_name):
        raise CheckpointError(
            f"{source.path} has no language model head; name the base that it was trained on with "
            "--base"
        )
    return os.fspath(source.path)
