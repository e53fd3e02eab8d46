"""The resumable state of a training run: safetensors and JSON, replaced atomically, no pickles.

``training_state/state.json`` names the tensor file that belongs to it. The tensor file is written
first and the JSON is replaced last, so whenever a run is killed one complete state is found. The
checkpoint may be a stranger's: neither the directory nor a file in it may be a link.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from otter_export.config import read_json
from otter_export.errors import CheckpointError, ConfigError
from otter_export.files import replacing, writing
from otter_export.safetensors_io import PlannedTensor, TensorStore, read_header, write_safetensors

DIRECTORY = "training_state"
_JSON = "state.json"
#: Two names in turn: the file that state.json names is never the one being written.
_TENSORS = ("even.safetensors", "odd.safetensors")


def save_state(checkpoint: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Replace the state of a checkpoint's training run.

    Args:
        checkpoint: The checkpoint directory.
        tensors: Float32 tensors by name.
        record: JSON values; must hold ``step``.

    Raises:
        CheckpointError: The state or a part of it is a link.
        OtterError: It cannot be written.
    """
    directory = _directory(checkpoint)
    with writing(directory):
        directory.mkdir(exist_ok=True)
    name = _TENSORS[load_record(checkpoint).get("tensors") == _TENSORS[0]]
    plan = [
        PlannedTensor(key, "F32", tuple(t.shape), lambda t=t: t.detach().numpy())  # type: ignore[misc]
        for key, t in tensors.items()
    ]
    write_safetensors(directory / name, plan)
    write_json(directory / _JSON, {**record, "tensors": name})


def amend_record(checkpoint: Path, fields: Mapping[str, Any]) -> None:
    """Add JSON values to the record of a saved state."""
    path = _directory(checkpoint) / _JSON
    write_json(path, {**read_json(path), **fields})


def load_record(checkpoint: Path) -> dict[str, Any]:
    """The record of a saved state; empty if there is none, or if it is damaged.

    Raises:
        CheckpointError: The state is a link.
    """
    try:
        record = read_json(_directory(checkpoint) / _JSON)
    except ConfigError:
        return {}
    return record if isinstance(record, dict) else {}


def load_state(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The state of an unfinished run, or None.

    Raises:
        CheckpointError: The state is damaged, or is a link.
    """
    directory = _directory(checkpoint)
    if not (directory / _JSON).is_file():
        return None
    try:
        record = read_json(directory / _JSON)
        path = directory / _TENSORS[_TENSORS.index(record["tensors"])]  # no path of a stranger
        store = TensorStore(read_header(path), path)
        return {n: torch.from_numpy(store.float32(n).copy()) for n in store}, record
    except (CheckpointError, ConfigError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the training state in {directory} is damaged ({error}); start over with --restart"
        ) from None


def remove_state(checkpoint: Path) -> None:
    """Forget the run: it has finished, or the user starts over.

    Raises:
        CheckpointError: The state is a link.
        OtterError: It cannot be removed.
    """
    directory = _directory(checkpoint)
    with writing(directory):
        (directory / _JSON).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON so that ``path`` is either the old file or the whole new one."""
    with replacing(path) as file:
        file.write(f"{json.dumps(data, indent=2)}\n".encode())


def _directory(checkpoint: Path) -> Path:
    """The directory of the state; whoever made the checkpoint cannot lead out of it."""
    directory = checkpoint / DIRECTORY
    for path in (directory, *(directory / name for name in (_JSON, *_TENSORS))):
        if path.is_symlink():
            raise CheckpointError(f"{path} is a link; remove it, a training run writes there")
    return directory
