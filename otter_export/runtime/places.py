"""The requests that have a place in the caches: prompts being fed, and the decoding batch."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from otter_export.errors import EngineError, OtterError
from otter_export.runtime.batch import Batch
from otter_export.runtime.engine import Engine
from otter_export.runtime.prefill import PrefillQueue
from otter_export.runtime.request import TokenEvent
from otter_export.runtime.sequence import SequenceState

_LOG = logging.getLogger(__name__)

#: What a forward pass gave to a sequence.
Outcomes = list[tuple[SequenceState, TokenEvent | OtterError]]


class Places:
    """Feeds prompts and decodes; a failure of the engine becomes an error of those concerned.

    No method raises: whoever fails, loses the place and appears among the outcomes.

    Args:
        engine: The engine.
        prefill_tokens: Most tokens of one forward pass over prompts.
    """

    def __init__(self, engine: Engine, prefill_tokens: int) -> None:
        self._engine = engine
        self._prompts = PrefillQueue(engine, prefill_tokens)
        self._batch: Batch | None = None

    @property
    def prefilling(self) -> int:
        """Sequences whose prompt is not complete."""
        return len(self._prompts)

    @property
    def running(self) -> tuple[SequenceState, ...]:
        """Sequences in the decoding batch."""
        return () if self._batch is None else self._batch.sequences

    def add(self, sequence: SequenceState) -> None:
        """Give a place to a sequence; its prompt waits for its turn."""
        self._prompts.add(sequence)

    def remove(self, gone: Collection[SequenceState]) -> Outcomes:
        """Free places.

        Returns:
            Others that were lost by it, because the engine failed.
        """
        for sequence in gone:
            self._prompts.remove(sequence)
        try:
            if self._batch is not None:
                self._batch.leave(gone)
            return []
        except Exception as error:
            return [(s, e) for s, e in self._lose_batch(error) if s not in gone]

    def feed(self) -> tuple[int, Outcomes]:
        """Run one forward pass over prompts, if there are any.

        Returns:
            Prompt tokens that were fed, and who failed.
        """
        members = self._prompts.turn()
        if not members:
            return 0, []
        try:
            fed = self._prompts.feed()
        except Exception as error:
            for sequence in members:
                self._prompts.remove(sequence)
            return 0, _all_failed(members, error)
        outcomes: Outcomes = [*fed.failed]
        try:
            if fed.done:
                if self._batch is None:
                    self._batch = Batch(self._engine)
                self._batch.join(fed.done)
        except Exception as error:
            joining = [prefilled.sequence for prefilled in fed.done]
            outcomes += _all_failed(joining, error)
            outcomes += [(s, e) for s, e in self._lose_batch(error) if s not in joining]
        return fed.tokens, outcomes

    def decode(self) -> Outcomes:
        """Run one step of the batch: a token, or an error, for each that is running."""
        if self._batch is None:
            return []
        try:
            return [*self._batch.step()]
        except Exception as error:
            return self._lose_batch(error)

    def _lose_batch(self, error: Exception) -> Outcomes:
        """The cache cannot be trusted any more: whoever is in it has lost their rows."""
        lost = _all_failed(self.running, error)
        self._batch = None
        return lost


def _all_failed(sequences: Sequence[SequenceState], error: Exception) -> Outcomes:
    if isinstance(error, OtterError):
        return [(sequence, error) for sequence in sequences]
    _LOG.error("the engine failed", exc_info=error)
    wrapped = EngineError(f"the engine failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return [(sequence, wrapped) for sequence in sequences]
