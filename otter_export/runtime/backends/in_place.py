"""The `Engine` protocol on a cache that the model writes in place (cache form ``in_place``).

A step writes its rows into the slots behind the committed prefix, where they are scratch: the
prefix itself stays as it is. `InPlaceEngine.commit` moves the kept rows to their slots, which they
often have already, and advances the lengths.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from otter_export.errors import EngineError
from otter_export.manifest import EngineManifest
from otter_export.runtime.backends import in_place_contract as contract
from otter_export.runtime.backends.executor import Executor, SlotBlock
from otter_export.runtime.backends.in_place_plan import (
    Moves,
    Part,
    check_tree,
    join_outputs,
    part_inputs,
    plan_parts,
    row_moves,
    sequence_moves,
    step_moves,
)
from otter_export.runtime.engine import BoolArray, Cache, IntArray, Step
from otter_export.runtime.step_check import check_commit, check_forward
from otter_export.runtime.tokenizer import FILE_NAME as TOKENIZER_FILE
from otter_export.runtime.tokenizer import JsonTokenizer


class InPlaceCache:
    """Key/value rows of a batch: sequence b is in place b of every block.

    Args:
        owner: The engine that made it.
        blocks: From `Executor.blocks`.
        lengths: ``[B]``: committed tokens; B is at most the blocks' places.
    """

    def __init__(
        self, owner: InPlaceEngine, blocks: tuple[SlotBlock, ...], lengths: IntArray
    ) -> None:
        self.owner = owner
        self.blocks = blocks
        self.lengths = lengths
        #: Counts changes of the committed rows, to recognise a step of an earlier state.
        self.version = 0
        #: Rows of the step that ran last, while somebody holds it.
        self.scratch: weakref.ref[_Rows] | None = None

    @property
    def places(self) -> int:
        """Sequences that fit."""
        return self.blocks[0].shape[1]

    @property
    def slots(self) -> int:
        """Slots per sequence."""
        return self.blocks[0].shape[3]


class _Rows:
    """New rows of one step: in the cache's slots, or in blocks of their own once others ran."""

    def __init__(self, cache: InPlaceCache, width: int) -> None:
        self.cache = cache
        self.version = cache.version
        self.width = width
        self.saved: tuple[SlotBlock, ...] | None = None


class InPlaceEngine:
    """An engine with a static cache.

    Args:
        directory: Where ``tokenizer.json`` is.
        manifest: The engine's.
        executor: Runs the model.
    """

    def __init__(self, directory: Path, manifest: EngineManifest, executor: Executor) -> None:
        self._directory = directory
        self._manifest = manifest
        self._executor = executor

    @property
    def manifest(self) -> EngineManifest:
        """The content of its ``engine.json``."""
        return self._manifest

    @functools.cached_property
    def tokenizer(self) -> JsonTokenizer:
        """The tokenizer of its directory."""
        return JsonTokenizer(self._directory / TOKENIZER_FILE)

    def new_cache(self, batch_size: int) -> InPlaceCache:
        """An empty cache; see `Engine.new_cache`."""
        if type(batch_size) is not int or batch_size < 0:
            raise EngineError(f"a cache holds 0 or more sequences, got {batch_size!r}")
        self._check_batch(batch_size)
        blocks = self._executor.blocks(max(batch_size, 1), self._executor.slots(1))
        return InPlaceCache(self, blocks, np.zeros(batch_size, np.int64))

    def append(self, cache: Cache, sources: Sequence[tuple[Cache, int]]) -> None:
        """Let copies of sequences join; see `Engine.append`."""
        cache = self._own(cache)
        taken = [self._sequence(source, index) for source, index in sources]
        if not taken:
            return
        if any(source is cache for source, _ in taken):
            raise EngineError("a cache cannot take sequences from itself")
        count = len(cache.lengths)
        self._check_batch(count + len(taken))
        added = np.array([source.lengths[index] for source, index in taken], np.int64)
        self._reserve(cache, count + len(taken), int(added.max()))
        for place, (source, index) in enumerate(taken, start=count):
            _move(cache.blocks, source.blocks, [(place, index, int(source.lengths[index]))])
        cache.lengths = np.concatenate([cache.lengths, added])
        cache.version += 1

    def select(self, cache: Cache, indices: Sequence[int]) -> None:
        """Keep these sequences, in this order; see `Engine.select`."""
        cache = self._own(cache)
        taken = [self._sequence(cache, index)[1] for index in indices]
        if len(set(taken)) < len(taken):
            raise EngineError(f"a sequence can be selected once, got {list(indices)}")
        moved = [(to, b, int(cache.lengths[b])) for to, b in enumerate(taken) if to != b]
        _move(cache.blocks, cache.blocks, moved)
        cache.lengths = cache.lengths[taken]
        cache.version += 1

    def forward(
        self,
        cache: Cache,
        input_ids: IntArray,
        position_ids: IntArray,
        tree: BoolArray,
        logits_to_keep: int,
    ) -> Step:
        """Run the model; see `Engine.forward`."""
        cache = self._own(cache)
        if not len(cache.lengths):
            raise EngineError("a step needs at least 1 sequence; the cache holds none")
        check_forward(self._manifest, cache.lengths, input_ids, position_ids, tree, logits_to_keep)
        batch, width = input_ids.shape
        parts = self._parts(batch, width, logits_to_keep)
        check_tree(tree, parts)
        self._save_scratch(cache)
        self._reserve(cache, batch, int(cache.lengths.max()) + width)
        outputs = []
        for part in parts:
            inputs = part_inputs(part, cache.lengths, cache.slots, input_ids, position_ids, tree)
            outputs.append(dict(self._executor.run(cache.blocks, inputs)))
        joined = join_outputs(parts, outputs)
        rows = _Rows(cache, width)
        cache.scratch = weakref.ref(rows)
        return Step(joined.pop(contract.LOGITS), joined, rows)

    def commit(self, cache: Cache, step: Step, rows: Sequence[Sequence[int]]) -> None:
        """Keep rows of a step; see `Engine.commit`."""
        cache, new = self._own(cache), step.rows
        if not isinstance(new, _Rows) or new.cache is not cache or new.version != cache.version:
            raise EngineError("a step can be committed once, to the cache that it was run on")
        lengths = check_commit(self._manifest, cache.lengths, new.width, rows)
        if new.saved is None:
            _put(cache.blocks, cache.blocks, row_moves(cache.lengths, rows))
        else:
            moves = row_moves(cache.lengths, rows, np.zeros_like(cache.lengths))
            _put(cache.blocks, new.saved, moves)
        cache.lengths = lengths
        cache.version += 1

    def _own(self, cache: Cache) -> InPlaceCache:
        if not isinstance(cache, InPlaceCache) or cache.owner is not self:
            raise EngineError(f"the cache was not made by this engine: {type(cache).__name__}")
        return cache

    def _sequence(self, cache: Cache, index: int) -> tuple[InPlaceCache, int]:
        """A sequence of a cache of this engine."""
        cache, count = self._own(cache), len(cache.lengths)
        if not 0 <= index < count:
            raise EngineError(f"the cache holds {count} sequences; there is no sequence {index}")
        return cache, index

    def _parts(self, batch: int, width: int, logits_to_keep: int) -> tuple[Part, ...]:
        self._check_batch(batch)
        return plan_parts(
            width,
            logits_to_keep,
            lambda step, kept: self._executor.accepts(batch, step, kept),
        )

    def _check_batch(self, batch: int) -> None:
        limit = self._executor.max_batch_size
        if batch > limit:
            raise EngineError(
                f"the batch would have {batch} sequences; the engine takes {limit}: give a smaller "
                "--batch-size, or build it with a larger --max-batch-size"
            )

    def _reserve(self, cache: InPlaceCache, places: int, tokens: int) -> None:
        """Make room; memory grows by doubling, so that copying stays amortised."""
        slots = self._executor.slots(tokens)
        if slots < tokens:
            raise EngineError(
                f"{tokens} tokens do not fit: the engine's cache has {slots} slots, its longest "
                f"sequence {self._manifest.max_sequence_length} tokens; feed fewer tokens a step"
            )
        if places <= cache.places and slots <= cache.slots:
            return
        if places > cache.places:
            places = min(max(places, 2 * cache.places), self._executor.max_batch_size)
        old = cache.blocks
        cache.blocks = self._executor.blocks(max(places, cache.places), max(slots, cache.slots))
        whole = [(b, b, int(length)) for b, length in enumerate(cache.lengths)]
        _put(cache.blocks, old, sequence_moves(whole))

    def _save_scratch(self, cache: InPlaceCache) -> None:
        """Copy the rows of a step that can still be committed, before another overwrites them."""
        rows = None if cache.scratch is None else cache.scratch()
        if rows is None or rows.saved is not None or rows.version != cache.version:
            return
        rows.saved = self._executor.blocks(len(cache.lengths), rows.width)
        _put(rows.saved, cache.blocks, step_moves(cache.lengths, rows.width))


def _move(
    blocks: Sequence[SlotBlock],
    sources: Sequence[SlotBlock],
    sequences: Sequence[tuple[int, int, int]],
) -> None:
    """Copy whole sequences to other places; ``sequences`` as `sequence_moves` takes them.

    Slots behind them are cleared: the sequence that was there may have left because it gave NaN,
    and 0 * NaN is NaN even under a mask.
    """
    _put(blocks, sources, sequence_moves(sequences))
    for block in blocks:
        for place, _, length in sequences:
            block.clear(place, length)


def _put(blocks: Sequence[SlotBlock], sources: Sequence[SlotBlock], moves: Moves) -> None:
    """Copy slots in the blocks of the base and of the channel alike."""
    if len(moves):
        for block, source in zip(blocks, sources, strict=True):
            block.put(moves.places, moves.slots, source, moves.source_places, moves.source_slots)
