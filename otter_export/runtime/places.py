"""The requests that have a place in the caches: prompts being fed, and the decoding batch."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from otter_export.errors import EngineError, OtterError
from otter_export.runtime.batch import Batch
from otter_export.runtime.engine import Engine
from otter_export.runtime.prefill import Place, PrefillQueue
from otter_export.runtime.request import TokenEvent
from otter_export.runtime.sequence import SequenceState

#: The batches: sequences that always feed one token, and those with few and with many candidates.
SINGLE, FEW, MANY = "single", "few", "many"
#: What one more forward pass costs, in rows: on CPUs about 8 (int8) to 12 (fp32), and some copying.
PASS_ROWS = 16

_LOG = logging.getLogger(__name__)

#: What a forward pass gave to a sequence.
Outcomes = list[tuple[SequenceState, TokenEvent | OtterError]]


class Places:
    """Feeds prompts and decodes; a failure of the engine becomes an error of those concerned.

    No method raises: whoever fails, loses the place and appears among the outcomes.

    Args:
        engine: The engine.
        prefill_tokens: Most tokens of one forward pass over prompts.
        separate: Decode sequences apart that feed few tokens, so that they are not padded to the
            candidates of the others. That is two or three passes per step, which pays where time
            goes with the number of rows, as on the CPU.
    """

    def __init__(self, engine: Engine, prefill_tokens: int, separate: bool) -> None:
        self._engine = engine
        self._separate = separate
        self._prompts = PrefillQueue(engine, prefill_tokens)
        self._batches: dict[str, Batch] = {}

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
        for key in list(self._batches):
            lost += self._leave(key, gone)
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
        single = [p for p in fed.done if self._separate and p.sequence.single]
        outcomes += self._join(SINGLE, single)
        outcomes += self._join(MANY, [p for p in fed.done if p not in single])
        return fed.tokens, outcomes

    def decode(self) -> tuple[int, Outcomes]:
        """Run one step of each batch: a token, or an error, for each sequence that is running.

        Returns:
            Forward passes, and what they gave.
        """
        passes = 0
        outcomes = self._regroup() if self._separate else []
        for key, batch in list(self._batches.items()):
            if batch.sequences:
                passes += 1
                try:
                    outcomes += batch.step()
                except Exception as error:
                    outcomes += self._lose(key, error)
        return passes, outcomes

    def _regroup(self) -> Outcomes:
        """Let sequences with few candidates left decode apart from those with many, if it pays."""
        held = {key: self._batches[key].sequences for key in (FEW, MANY) if key in self._batches}
        widths = {s: len(s.proposal.fed) for sequences in held.values() for s in sequences}
        few = narrow_width(list(widths.values()))
        outcomes: Outcomes = []
        for source, target in ((FEW, MANY), (MANY, FEW)):
            moving = [s for s in held.get(source, ()) if (widths[s] <= few) is (target == FEW)]
            # The first move can lose the batch of the second.
            if moving and source in self._batches:
                outcomes += self._join(target, self._batches[source].places(moving))
                lost = self._leave(source, moving)
                outcomes += [(s, error) for s, error in lost if s not in moving]
        return outcomes

    def _join(self, key: str, places: list[Place]) -> Outcomes:
        if not places:
            return []
        try:
            if key not in self._batches:
                self._batches[key] = Batch(self._engine)
            self._batches[key].join(places)
            return []
        except Exception as error:
            failed = _all_failed([place.sequence for place in places], error)
            return [*failed, *self._lose(key, error)]

    def _leave(self, key: str, gone: Collection[SequenceState]) -> Outcomes:
        try:
            self._batches[key].leave(gone)
            return []
        except Exception as error:
            return self._lose(key, error)

    def _lose(self, key: str, error: Exception) -> Outcomes:
        """A cache cannot be trusted any more: whoever is in it has lost their rows."""
        batch = self._batches.pop(key, None)
        return [] if batch is None else _all_failed(batch.sequences, error)


def narrow_width(widths: Sequence[int]) -> int:
    """Sequences that feed at most so many tokens should decode apart; 0 if it does not pay.

    Args:
        widths: Tokens that each sequence feeds in the next step.
    """
    widest = max(widths, default=0)
    widest += widest % 2

    def saved(few: int) -> int:
        """Rows that are not computed if a batch of its own is ``few`` wide instead of widest."""
        return sum(width <= few for width in widths) * (widest - few)

    best = max(range(2, widest, 2), key=saved, default=0)
    return best if best and saved(best) > PASS_ROWS else 0


def _all_failed(sequences: Sequence[SequenceState], error: Exception) -> Outcomes:
    if isinstance(error, OtterError):
        return [(sequence, error) for sequence in sequences]
    _LOG.error("the engine failed", exc_info=error)
    wrapped = EngineError(f"the engine failed: {type(error).__name__}: {error}")
    wrapped.__cause__ = error
    return [(sequence, wrapped) for sequence in sequences]
