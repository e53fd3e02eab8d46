"""An engine that counts its forward passes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from otter_export.manifest import EngineManifest
from otter_export.runtime.engine import BoolArray, Cache, Engine, IntArray, Step, Tokenizer
from otter_export.signals import Signal


class CountingEngine:
    """Passes everything on to another `Engine`.

    Attributes:
        forwards: Calls of `forward` so far.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.forwards = 0

    @property
    def manifest(self) -> EngineManifest:
        """See `Engine.manifest`."""
        return self._engine.manifest

    @property
    def tokenizer(self) -> Tokenizer:
        """See `Engine.tokenizer`."""
        return self._engine.tokenizer

    @property
    def even_steps(self) -> bool:
        """See `Engine.even_steps`."""
        return self._engine.even_steps

    @property
    def chains_alike(self) -> bool:
        """See `Engine.chains_alike`."""
        return self._engine.chains_alike

    def token_ids(self, signal: Signal) -> npt.NDArray[np.int32] | None:
        """See `Engine.token_ids`."""
        return self._engine.token_ids(signal)

    def new_cache(self, batch_size: int) -> Cache:
        """See `Engine.new_cache`."""
        return self._engine.new_cache(batch_size)

    def append(self, cache: Cache, sources: Sequence[tuple[Cache, int]]) -> None:
        """See `Engine.append`."""
        self._engine.append(cache, sources)

    def select(self, cache: Cache, indices: Sequence[int]) -> None:
        """See `Engine.select`."""
        self._engine.select(cache, indices)

    def truncate(self, cache: Cache, lengths: Sequence[int]) -> None:
        """See `Engine.truncate`."""
        self._engine.truncate(cache, lengths)

    def forward(
        self,
        cache: Cache,
        input_ids: IntArray,
        position_ids: IntArray,
        tree: BoolArray,
        logits_to_keep: int,
    ) -> Step:
        """See `Engine.forward`."""
        self.forwards += 1
        return self._engine.forward(cache, input_ids, position_ids, tree, logits_to_keep)

    def commit(self, cache: Cache, step: Step, rows: Sequence[Sequence[int]]) -> None:
        """See `Engine.commit`."""
        self._engine.commit(cache, step, rows)
