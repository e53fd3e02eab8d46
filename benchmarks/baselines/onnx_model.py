"""`Model` on ONNX Runtime, with this project's graphs: the base alone, or under another head.

So methods are compared on the same kernels, in the same precision. It loads no more than a runtime
does, since its process's memory is measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.baselines.model import Array, Cache
from otter_export import engine_io
from otter_export.engine_io import is_cache, present_of
from otter_export.runtime.executors.onnxruntime import open_session

#: Slots by which a cache grows.
SLOTS = 32


@dataclasses.dataclass(frozen=True)
class Rows:
    """Keys and values ``[B, heads, slots, e]`` by input name; ``length`` slots are full."""

    caches: dict[str, Array]
    length: int


class OnnxModel:
    """A graph of `benchmarks.baselines.onnx_files`.

    Args:
        directory: Where it is.
        threads: Of one step.
        scalar: Whether the output is one number, not one for each token.
    """

    def __init__(self, directory: Path, threads: int, *, scalar: bool) -> None:
        self._session = open_session(directory / "model.onnx", "cpu", threads)
        self._scalar = scalar
        self._inputs = {v.name: v for v in self._session.get_inputs()}
        self._outputs = [v.name for v in self._session.get_outputs()]

    def read(self, cache: Cache | None, ids: Sequence[Sequence[int]]) -> tuple[Array, Cache]:
        """See `Model.read`."""
        tokens = np.array(ids, np.int64)
        batch, step = tokens.shape
        held = self._empty(batch) if cache is None else cache
        end = held.length + step
        slots = next(iter(held.caches.values())).shape[2]
        seen = np.concatenate((np.arange(slots) < held.length, np.ones(step, np.bool_)))
        mask = np.tile(seen, (batch, step, 1))
        mask[:, :, slots:] = np.tri(step, dtype=np.bool_)
        feed = {
            engine_io.INPUT_IDS: tokens,
            engine_io.POSITION_IDS: np.tile(np.arange(held.length, end), (batch, 1)),
            engine_io.ATTENTION_MASK: mask,
            engine_io.LOGITS_TO_KEEP: np.array([1], np.int64),
            **held.caches,
        }
        found = self._session.run(None, {name: feed[name] for name in self._inputs})
        outputs = dict(zip(self._outputs, found, strict=True))
        logits = outputs[engine_io.LOGITS][:, -1]
        return logits[:, 0] if self._scalar else logits, _extended(held, outputs, end)

    def rows(self, cache: Cache, chosen: Sequence[int]) -> Cache:
        """See `Model.rows`."""
        picked = np.array(chosen)
        return Rows({name: held[picked] for name, held in cache.caches.items()}, cache.length)

    def _empty(self, batch: int) -> Rows:
        shapes = {name: v.shape for name, v in self._inputs.items() if is_cache(name)}
        return Rows({n: np.zeros((batch, s[1], 0, s[3]), np.float32) for n, s in shapes.items()}, 0)


def _extended(held: Rows, outputs: dict[str, Array], end: int) -> Rows:
    """The cache with the new rows behind the old; in its own memory while there is room."""
    caches = {}
    for name, old in held.caches.items():
        kept = old
        if end > old.shape[2]:
            slots = -(-end // SLOTS) * SLOTS
            kept = np.zeros((*old.shape[:2], slots, old.shape[3]), old.dtype)
            kept[:, :, : held.length] = old[:, :, : held.length]
        kept[:, :, held.length : end] = outputs[present_of(name)]
        caches[name] = kept
    return Rows(caches, end)
