"""The requests that have a place in the caches: prompts being fed, and the decoding batch."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from otter_export.errors import EngineError, OtterError
from otter_export.runtime.batch import Batch
from otter_export.runtime.engine import Engine
from otter_export.runtime.prefill import Prefilled, PrefillQueue
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
        separate: Decode sequences that feed one token per step in a batch of their own, so that
            they are not padded to the candidates of the others. That is two passes per step, which
            pays where time goes with the number of rows, as on the CPU.
    """

    def __init__(self, engine: Engine, prefill_tokens: int, separate: bool) -> None:
        self._engine = engine
        self._separate = separate
        self._prompts = PrefillQueue(engine, prefill_tokens)
        self._batches: dict[bool, Batch] = {}

    @property
    def prefilling(self) -> int:
        """Sequences whose prompt is not complete."""
        return len(self._prompts)

    @property
    def running(self) -> tuple[SequenceState, ...]:
        """Sequences that are decoding; may be asked for from any thread."""
        return tuple(s for batch in list(self._batches.values()) for s in batch.sequences)

    def add(self, sequence: SequenceState) -> None:
        """Give a place to a sequence; its prompt waits for its turn."""
        self._prompts.add(sequence)

    def remove(self, gone: Collection[SequenceState]) -> Outcomes:
        """Free places.

        Returns:
            Others that were lost by it, because the engine failed.
        """
        self._prompts.remove(gone)
        lost: Outcomes = []
        for key, batch in list(self._batches.items()):
            try:
                batch.leave(gone)
            except Exception as error:
                lost += self._lose(key, error)
        return [(sequence, error) for sequence, error in lost if sequence not in gone]

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
            self._prompts.remove(members)
            return 0, _all_failed(members, error)
        outcomes: Outcomes = [*fed.failed]
        for key in (False, True):
            joining = [p for p in fed.done if self._key(p.sequence) is key]
            if joining:
                outcomes += self._join(key, joining)
        return fed.tokens, outcomes

    def decode(self) -> tuple[int, Outcomes]:
        """Run one step of each batch: a token, or an error, for each sequence that is running.

        Returns:
            Forward passes, and what they gave.
        """
        passes = 0
        outcomes: Outcomes = []
        for key, batch in list(self._batches.items()):
            if batch.sequences:
                passes += 1
                try:
                    outcomes += batch.step()
                except Exception as error:
                    outcomes += self._lose(key, error)
        return passes, outcomes

    def _key(self, sequence: SequenceState) -> bool:
        return self._separate and sequence.single

    def _join(self, key: bool, joining: list[Prefilled]) -> Outcomes:
        try:
            if key not in self._batches:
                self._batches[key] = Batch(self._engine)
            self._batches[key].join(joining)
            return []
        except Exception as error:
            failed = _all_failed([p.sequence for p in joining], error)
            return [*failed, *self._lose(key, error)]

    def _lose(self, key: bool, error: Exception) -> Outcomes:
        """A cache cannot be trusted any more: whoever is in it has lost their rows."""
        batch = self._batches.pop(key, None)
        return [] if batch is None else _all_failed(batch.sequences, error)


def _all_failed(sequences: Sequence[SequenceState], error: Exception) -> Outcomes:
    if isinstance(error, OtterError):
        return [(sequence, error) for sequence in sequences]
    _LOG.error("the engine failed", exc_info=error)
    wrapped = EngineError(f"the engine failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return [(sequence, wrapped) for sequence in sequences]
