"""``draft_tokens.safetensors`` of an engine: the tokens that reduced draft vocabularies stand for.

It holds, under its name in the checkpoint, the tensor ``signals.NAME.token_ids``, int32 ``[V']``,
of each ``medusa`` signal that drafts a part of the vocabulary; an engine without one has no file.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from otter_export.errors import CheckpointError, EngineError
from otter_export.safetensors_io import IDS_DTYPE, PlannedTensor, TensorStore, write_safetensors
from otter_export.signals import Signal, are_token_ids, token_ids_name

_STEM = "draft_tokens"
FILE_NAME = f"{_STEM}.safetensors"


def write_draft_tokens(
    token_ids: Mapping[Signal, npt.NDArray[np.int32] | None], directory: Path
) -> list[str]:
    """Write the file if a signal drafts a part of the vocabulary; returns its name, or nothing.

    Args:
        token_ids: Of each signal, ascending; None: all.
        directory: Of the engine.
    """
    planned = [
        PlannedTensor(
            token_ids_name(signal), IDS_DTYPE, ids.shape, functools.partial(np.array, ids)
        )
        for signal, ids in token_ids.items()
        if ids is not None
    ]
    if not planned:
        return []
    write_safetensors(directory / FILE_NAME, planned)
    return [FILE_NAME]


def read_draft_tokens(
    directory: Path, signal: Signal, vocab_size: int
) -> npt.NDArray[np.int32] | None:
    """The tokens that a signal can draft, ``[V']`` ascending; None: all.

    Raises:
        EngineError: The file is missing or damaged, or its content does not fit the signal.
    """
    if signal.draft_vocab is None:
        return None
    path, name = directory / FILE_NAME, token_ids_name(signal)
    try:
        store = TensorStore.open(directory, _STEM)
        found = name in store and (store[name].dtype, store[name].shape)
        ids = np.asarray(store.raw(name)) if found == (IDS_DTYPE, (signal.draft_vocab,)) else None
    except CheckpointError as error:
        raise EngineError(f"{error}. Build the engine again") from None
    if ids is None or not are_token_ids(ids, vocab_size):
        raise EngineError(
            f"{path}: tensor {name} must be {signal.draft_vocab} ascending token ids from 0 to "
            f"{vocab_size - 1}, int32. Build the engine again"
        )
    return ids
