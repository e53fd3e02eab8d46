"""An engine that takes the time of its forward passes."""

from __future__ import annotations

import dataclasses
import functools
import time
from typing import NamedTuple

from otter_export.evaluation.counting_engine import CountingEngine
from otter_export.manifest import EngineManifest
from otter_export.runtime.engine import BoolArray, Cache, IntArray, Step


class Pass(NamedTuple):
    """One forward pass: its rows, ``B * S``, and how long it took."""

    rows: int
    seconds: float


class TimedEngine(CountingEngine):
    """Passes everything on to another `Engine`; no token ends a text, so that every run is as long.

    Attributes:
        passes: Of `forward`, in order.
    """

    passes: list[Pass]

    @functools.cached_property
    def manifest(self) -> EngineManifest:
        """That of the engine, without tokens that end a text."""
        return dataclasses.replace(self._engine.manifest, eos_token_ids=())

    def forward(
        self,
        cache: Cache,
        input_ids: IntArray,
        position_ids: IntArray,
        tree: BoolArray,
        logits_to_keep: int,
    ) -> Step:
        """See `Engine.forward`."""
        started = time.perf_counter()
        step = super().forward(cache, input_ids, position_ids, tree, logits_to_keep)
        self.passes.append(Pass(input_ids.size, time.perf_counter() - started))
        return step
