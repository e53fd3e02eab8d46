"""`Model` on ONNX Runtime, with this project's graphs: the base alone, or under another head.

So methods are compared on the same kernels, in the same precision. It loads no more than a runtime
does, since its process's memory is measured.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

# ONNX Runtime looks at it once, when it is imported.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import numpy as np
import onnxruntime as ort

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

    def read(self, cache: Cache | None, ids: Sequence[Sequence[int]]) -> tuple[Array, Cache]:
        """See `Model.read`."""
        tokens = np.array(ids, np.int64)
        batch, step = tokens.shape
        held = self._empty(batch) if cache is None else cache
        end = held.length + step
        caches = _with_room(held, end)
        slots = next(iter(caches.values())).shape[2]
        mask = np.zeros((batch, 1, step, slots), np.bool_)
        mask[..., : held.length] = True
        mask[..., held.length : end] = np.tri(step, dtype=np.bool_)
        feed = {
            engine_io.INPUT_IDS: tokens,
            engine_io.POSITION_IDS: np.tile(np.arange(held.length, end), (batch, 1)),
            engine_io.ATTENTION_MASK: mask,
            engine_io.WRITE_INDICES: np.full(batch, held.length),
            engine_io.KEPT_ROWS: np.full((batch, 1), step - 1),
            **caches,
        }
        logits = self._run(feed)[:, -1]
        return logits[:, 0] if self._scalar else logits, Rows(caches, end)

    def _run(self, feed: Mapping[str, Array]) -> Array:
        """The logits; new rows are written into the caches where they are."""
        binding = self._session.io_binding()
        values = {n: ort.OrtValue.ortvalue_from_numpy(feed[n]) for n in self._inputs}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
            if is_cache(name):
                binding.bind_ortvalue_output(present_of(name), value)
        binding.bind_output(engine_io.LOGITS)
        self._session.run_with_iobinding(binding)
        logits: Array = binding.get_outputs()[-1].numpy()  # in the order in which they were bound
        return logits

    def rows(self, cache: Cache, chosen: Sequence[int]) -> Cache:
        """See `Model.rows`."""
        picked = np.array(chosen)
        return Rows({name: held[picked] for name, held in cache.caches.items()}, cache.length)

    def _empty(self, batch: int) -> Rows:
        shapes = {name: v.shape for name, v in self._inputs.items() if is_cache(name)}
        return Rows({n: np.zeros((batch, s[1], 0, s[3]), np.float32) for n, s in shapes.items()}, 0)


def _with_room(held: Rows, end: int) -> dict[str, Array]:
    """The caches with slots for ``end`` tokens: the same memory if they have them."""
    caches = {}
    for name, old in held.caches.items():
        kept = old
        if end > old.shape[2]:
            slots = -(-end // SLOTS) * SLOTS
            kept = np.zeros((*old.shape[:2], slots, old.shape[3]), old.dtype)
            kept[:, :, : held.length] = old[:, :, : held.length]
        caches[name] = kept
    return caches
