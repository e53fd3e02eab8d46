"""The resumable state of a training run: safetensors and JSON, replaced atomically, no pickles.

``training_state/state.json`` names the tensor file that belongs to it. The tensor file is written
first and the JSON is replaced last, so whenever a run is killed one complete state is found.
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
from otter_export.safetensors_io import PlannedTensor, TensorStore, read_header, write_safetensors

DIRECTORY = "training_state"
_JSON = "state.json"


def save_state(checkpoint: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Replace the state of a checkpoint's training run.

    Args:
        checkpoint: The checkpoint directory.
        tensors: Float32 tensors by name.
        record: JSON values; must hold ``step``.
    """
    directory = checkpoint / DIRECTORY
    directory.mkdir(exist_ok=True)
    # Two names in turn: the file that state.json names is never the one being written.
    previous = _named_file(directory)
    name = "even.safetensors" if previous != "even.safetensors" else "odd.safetensors"
    plan = [
        PlannedTensor(key, "F32", tuple(t.shape), lambda t=t: t.detach().numpy())  # type: ignore[misc]
        for key, t in tensors.items()
    ]
    write_safetensors(directory / name, plan)
    write_json(directory / _JSON, {**record, "tensors": name})


def load_state(checkpoint: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The state of an unfinished run, or None.

    Raises:
        CheckpointError: The state is damaged.
    """
    directory = checkpoint / DIRECTORY
    if not (directory / _JSON).is_file():
        return None
    try:
        record = read_json(directory / _JSON)
        path = directory / str(record["tensors"])
        store = TensorStore(read_header(path), path)
        return {n: torch.from_numpy(store.float32(n).copy()) for n in store}, record
    except (CheckpointError, ConfigError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"the training state in {directory} is damaged ({error}); start over with --restart"
        ) from None


def remove_state(checkpoint: Path) -> None:
    """Forget the run: it has finished, or the user starts over."""
    directory = checkpoint / DIRECTORY
    (directory / _JSON).unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON so that ``path`` is either the old file or the whole new one."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _named_file(directory: Path) -> str | None:
    try:
        return str(read_json(directory / _JSON)["tensors"])
    except (ConfigError, KeyError, TypeError):
        return None
