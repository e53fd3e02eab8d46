"""Sequences that are decoded together: they join, take steps, and leave."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from otter_export.errors import EngineError
from otter_export.runtime.engine import BoolArray, Engine, IntArray
from otter_export.runtime.prefill import Place
from otter_export.runtime.request import TokenEvent
from otter_export.runtime.sequence import Proposal, SequenceState


class Batch:
    """Runs one forward pass per step for all its sequences.

    Every sequence brings its own prompt length, method, candidates, limits and random generator, so
    a result does not depend on what else is in the batch.

    Args:
        engine: The engine.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._cache = engine.new_cache(0)
        self._sequences: list[SequenceState] = []

    @property
    def sequences(self) -> tuple[SequenceState, ...]:
        """The sequences, in the order of their places."""
        return tuple(self._sequences)

    def join(self, places: Sequence[Place]) -> None:
        """Let sequences join whose rows are in another cache; they are copied."""
        self._engine.append(self._cache, [(place.cache, place.index) for place in places])
        self._sequences += [place.sequence for place in places]

    def places(self, wanted: Collection[SequenceState]) -> list[Place]:
        """Where some of its sequences are, to let them join another batch."""
        held = enumerate(self._sequences)
        return [Place(sequence, self._cache, b) for b, sequence in held if sequence in wanted]

    def leave(self, gone: Collection[SequenceState]) -> None:
        """Take sequences out; the last ones move into their places."""
        kept = [b for b, s in enumerate(self._sequences) if s not in gone]
        if len(kept) == len(self._sequences):
            return
        indices = list(range(len(kept)))
        behind = [b for b in kept if b >= len(kept)]
        for place in indices:
            if self._sequences[place] in gone:
                indices[place] = behind.pop()
        self._engine.select(self._cache, indices)
        self._sequences = [self._sequences[index] for index in indices]

    def step(self) -> list[tuple[SequenceState, TokenEvent | EngineError]]:
        """Generate one token for every sequence; those that finish or fail leave."""
        if not self._sequences:
            return []
        proposals = [sequence.proposal for sequence in self._sequences]
        width = max(len(p.fed) for p in proposals)
        # Even, and so never one where it may be more: some kernels treat pairs of rows, or a single
        # row, in their own way, and a result must not depend on who else is here.
        if not all(sequence.single for sequence in self._sequences):
            width += width % 2
        step = self._engine.forward(self._cache, *self._inputs(proposals, width), width)
        outcomes: list[tuple[SequenceState, TokenEvent | EngineError]] = []
        kept: list[list[int]] = []
        gone: set[SequenceState] = set()
        for b, sequence in enumerate(self._sequences):
            try:
                event, row = sequence.advance(step, b)
                outcomes.append((sequence, event))
                kept.append([row])
            except EngineError as error:
                outcomes.append((sequence, error))
                kept.append([])
            if not kept[b] or sequence.finish_reason is not None:
                kept[b] = []
                gone.add(sequence)
        self._engine.commit(self._cache, step, kept)
        self.leave(gone)
        return outcomes

    def _inputs(
        self, proposals: Sequence[Proposal], width: int
    ) -> tuple[IntArray, IntArray, BoolArray]:
        """Token ids and positions ``[B, S]``, and the tree ``[B, S, S]``: each sees itself.

        Padding comes last, so that a candidate is at the same place however wide the step is.
        """
        shape = (len(proposals), width)
        input_ids = np.zeros(shape, np.int64)
        position_ids = np.empty(shape, np.int64)
        for b, (sequence, proposal) in enumerate(zip(self._sequences, proposals, strict=True)):
            input_ids[b, : len(proposal.fed)] = proposal.fed
            position_ids[b] = sequence.length
        tree = np.broadcast_to(np.eye(width, dtype=np.bool_), (*shape, width))
        return input_ids, position_ids, tree
