"""Sequences that are decoded together: they join, take steps, and leave when they finish."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Sequence

import numpy as np

from otter_export.runtime.engine import BoolArray, Cache, Engine, IntArray
from otter_export.runtime.prefill import prefill, prompt_groups
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
        self._sequences: list[SequenceState] = []
        self._cache: Cache | None = None

    def __len__(self) -> int:
        """Sequences that are not finished."""
        return len(self._sequences)

    def add(self, sequences: Sequence[SequenceState]) -> None:
        """Feed the prompts of new sequences and let them join."""
        sources = self._sources(self._sequences)
        joined = list(self._sequences)
        for group in prompt_groups([s.length for s in sequences]):
            members = [sequences[i] for i in group]
            for sequence in members:
                sequence.start()
            cache, step = prefill(self._engine, [s.prompt_ids for s in members])
            for b, sequence in enumerate(members):
                sequence.see(step.logits[b, -1], step.signals[sequence.signal.name][b, -1])
                sources.append((cache, b))
            joined += members
        self._use(joined, sources)

    def step(self) -> list[tuple[SequenceState, TokenEvent]]:
        """Generate one token for every sequence; those that finish leave."""
        if self._cache is None:
            return []
        proposals = [sequence.propose() for sequence in self._sequences]
        # The fed tokens of a sequence are the last of its row; padding comes first.
        width = max(len(p.fed) for p in proposals)
        step = self._engine.forward(self._cache, *self._inputs(proposals, width), width)
        events, kept = [], []
        for b, (sequence, proposal) in enumerate(zip(self._sequences, proposals, strict=True)):
            first = width - len(proposal.fed)
            signal = step.signals[sequence.signal.name]
            event, row = sequence.advance(proposal, step.logits[b, first:], signal[b, first:])
            events.append((sequence, event))
            kept.append([first + row] if sequence.finish_reason is None else [])
        self._engine.commit(self._cache, step, kept)
        remaining = [s for s in self._sequences if s.finish_reason is None]
        if len(remaining) < len(self._sequences):
            self._use(remaining, self._sources(remaining))
        return events

    def remove(self, index: int) -> None:
        """Take out the sequences of a request whose answer nobody wants any more."""
        remaining = [s for s in self._sequences if s.index != index]
        if len(remaining) < len(self._sequences):
            self._use(remaining, self._sources(remaining))

    def _inputs(
        self, proposals: Sequence[Proposal], width: int
    ) -> tuple[IntArray, IntArray, BoolArray]:
        """Token ids and positions ``[B, S]``, and the tree ``[B, S, S]``: each sees itself."""
        shape = (len(proposals), width)
        input_ids = np.zeros(shape, np.int64)
        position_ids = np.empty(shape, np.int64)
        for b, (sequence, proposal) in enumerate(zip(self._sequences, proposals, strict=True)):
            input_ids[b, width - len(proposal.fed) :] = proposal.fed
            position_ids[b] = sequence.length
        tree = np.broadcast_to(np.eye(width, dtype=np.bool_), (*shape, width))
        return input_ids, position_ids, tree

    def _sources(self, sequences: Sequence[SequenceState]) -> list[tuple[Cache, int]]:
        cache = self._cache
        if cache is None:
            return []
        return [(cache, self._sequences.index(s)) for s in sequences]

    def _use(self, sequences: list[SequenceState], sources: list[tuple[Cache, int]]) -> None:
        """Make these the batch; their caches are copied into one, unless they are one already."""
        self._sequences = sequences
        caches = {id(cache) for cache, _ in sources}
        whole = [index for _, index in sources] == list(range(len(sources)))
        if not sources:
            self._cache = None
        elif len(caches) == 1 and whole and len(sources[0][0].lengths) == len(sources):
            self._cache = sources[0][0]
        else:
            self._cache = self._engine.gather(sources)


def decode(
    engine: Engine, sequences: Sequence[SequenceState], batch_size: int
) -> Iterator[tuple[SequenceState, TokenEvent]]:
    """Generate all sequences, at most ``batch_size`` at a time; a place that gets free is taken."""
    waiting = collections.deque(sequences)
    batch = Batch(engine)
    while waiting or len(batch):
        free = min(batch_size - len(batch), len(waiting))
        if free:
            batch.add([waiting.popleft() for _ in range(free)])
        yield from batch.step()
