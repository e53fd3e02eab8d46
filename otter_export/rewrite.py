"""A checkpoint written again under another configuration: what both have keeps its bits."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterable
from pathlib import Path

from otter_export.checkpoint import Checkpoint
from otter_export.config import OtterConfig
from otter_export.insert import Insertion, adapter_name, base_files, planned_tensor
from otter_export.probe import Maker
from otter_export.safetensors_io import PlannedTensor

_REMEDY = "insert the channel with --dtype BF16 or F32"


def rewritten(
    checkpoint: Checkpoint,
    config: OtterConfig,
    tensors: Iterable[tuple[str, tuple[int, ...], Maker]],
    destination: Path,
    *,
    force: bool,
) -> Insertion:
    """The plan of a checkpoint with the tensors of another one, and some that it has not.

    Args:
        checkpoint: Whose tensors and base are kept.
        config: Of the new one.
        tensors: Name, shape and maker of all its tensors; those that the old one has are not made.
        destination: Directory that `Insertion.write` will make.
        force: Whether an existing checkpoint there may be replaced.
    """
    directory, base, stored = checkpoint.directory, checkpoint.base, checkpoint.tensors
    dtype = next(iter(stored.values())).dtype
    planned = []
    for name, shape, make in tensors:
        if name in stored:
            kept = functools.partial(stored.raw, name)
            planned.append(PlannedTensor(name, stored[name].dtype, shape, kept))
        else:
            planned.append(planned_tensor(name, shape, make, dtype, _REMEDY))
    location = config.base_model_name_or_path
    if location is not None and (directory / location).is_dir():
        location = adapter_name(os.fspath(directory / location), destination)
    return Insertion(
        destination=destination,
        force=force,
        base=base,
        config=dataclasses.replace(config, base_model_name_or_path=location),
        tensors=tuple(planned),
        copied=base_files(base) if location is None else (),
        shards=(),
        metadata={"format": "pt"},
    )
