"""Checks of the arguments of `Engine.forward` and `Engine.commit`, the same for every backend."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from otter_export.errors import EngineError
from otter_export.manifest import EngineManifest
from otter_export.runtime.engine import BoolArray, IntArray


def check_forward(
    manifest: EngineManifest,
    lengths: IntArray,
    input_ids: IntArray,
    position_ids: IntArray,
    tree: BoolArray,
    logits_to_keep: int,
) -> None:
    """Raise `EngineError` unless `Engine.forward` can run with these arguments.

    Args:
        manifest: The engine's.
        lengths: ``[B]``: committed tokens.
        input_ids: As `Engine.forward`, like the following.
        position_ids: ``[B, S]``.
        tree: ``[B, S, S]``.
        logits_to_keep: R.
    """
    _check_batch(lengths)
    shape = np.shape(input_ids)
    if len(shape) != 2 or shape[0] != len(lengths) or shape[1] < 1:
        raise EngineError(f"input_ids must be [{len(lengths)}, S], got {list(shape)}")
    _check_array("input_ids", input_ids, shape, np.int64)
    _check_array("position_ids", position_ids, shape, np.int64)
    _check_array("tree", tree, (*shape, shape[1]), np.bool_)
    _check_range("input_ids", input_ids, manifest.vocab_size, "the vocabulary size")
    limit = manifest.max_sequence_length
    _check_range("position_ids", position_ids, limit, "the engine's max_sequence_length")
    if not 1 <= logits_to_keep <= shape[1]:
        raise EngineError(f"logits_to_keep must be from 1 to {shape[1]}, got {logits_to_keep}")


def check_commit(
    manifest: EngineManifest, lengths: IntArray, width: int, rows: Sequence[Sequence[int]]
) -> IntArray:
    """Lengths ``[B]`` after `Engine.commit`.

    Args:
        manifest: The engine's.
        lengths: ``[B]``: committed tokens.
        width: S of the step.
        rows: As `Engine.commit`.

    Raises:
        EngineError: A row does not exist, or a sequence would be too long.
    """
    _check_batch(lengths)
    if len(rows) != len(lengths):
        raise EngineError(f"rows must be given for {len(lengths)} sequences, got {len(rows)}")
    for kept in rows:
        if len(kept) and not (min(kept) >= 0 and max(kept) < width):
            raise EngineError(f"rows must be from 0 to {width - 1}, got {list(kept)}")
    total = lengths + np.array([len(kept) for kept in rows], np.int64)
    if total.max() > manifest.max_sequence_length:
        raise EngineError(
            f"the sequence would have {total.max()} tokens; the engine takes "
            f"{manifest.max_sequence_length}: build it with a larger --max-seq-len"
        )
    return total


def _check_batch(lengths: IntArray) -> None:
    if not len(lengths):
        raise EngineError(
            "the cache holds no sequences, and a step needs at least 1 sequence: append some first"
        )


def _check_array(name: str, array: object, shape: tuple[int, ...], dtype: type) -> None:
    if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
        found = type(array).__name__
        if isinstance(array, np.ndarray):
            found = f"{array.dtype}{list(array.shape)}"
        raise EngineError(f"{name} must be {np.dtype(dtype)}{list(shape)}, got {found}")


def _check_range(name: str, array: IntArray, limit: int, what: str) -> None:
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= limit:
        bad = low if low < 0 else high
        raise EngineError(f"{name} holds {bad}; accepted: 0 to {limit - 1} ({what} is {limit})")
