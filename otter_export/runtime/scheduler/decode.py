"""The decoding batches: who is decoded with whom."""

from __future__ import annotations

import contextlib
import enum
from collections.abc import Collection, Iterator

from otter_export.runtime.engine import Engine
from otter_export.runtime.request import TokenEvent
from otter_export.runtime.scheduler.batch import Batch
from otter_export.runtime.scheduler.sequence import Sequence, fail

#: What one more forward pass costs, in rows: on CPUs about 8 (int8) to 12 (fp32), and some copying.
PASS_ROWS = 16


class Width(enum.Enum):
    """How many tokens the sequences of a batch feed per step."""

    #: Always one, because the winner is known by then.
    ONE = enum.auto()
    #: Few candidates are left after pruning.
    NARROW = enum.auto()
    #: The others, or all where batches are not separate.
    WIDE = enum.auto()


class Decoder:
    """Runs the decoding steps; an error of the engine becomes that of the sequences concerned.

    No method raises: who fails has an `error` and is in no batch any more.

    Args:
        engine: The engine.
        separate: Decode sequences apart that feed few tokens, so that they are not padded to the
            candidates of the others. That is two or three passes per step, which pays where time
            goes with the number of rows, as on the CPU.
    """

    def __init__(self, engine: Engine, separate: bool) -> None:
        self._engine = engine
        self._separate = separate
        self._batches: dict[Width, Batch] = {}

    def join(self, sequences: Collection[Sequence]) -> None:
        """Let sequences decode whose prompt is complete."""
        one = [s for s in sequences if self._separate and s.feeds_one]
        self._join(Width.ONE, one)
        self._join(Width.WIDE, [s for s in sequences if s not in one])

    def remove(self, gone: Collection[Sequence]) -> None:
        """Take sequences out; one that is not here is no error."""
        for width in list(self._batches):
            self._leave(width, gone)

    def step(self) -> tuple[int, list[TokenEvent]]:
        """Run one step of each batch: a token for each sequence.

        Returns:
            Forward passes, and the tokens.
        """
        if self._separate:
            self._regroup()
        passes = 0
        events: list[TokenEvent] = []
        for width, batch in list(self._batches.items()):
            if batch.sequences:
                passes += 1
                # Those that finish leave the batch before its step is over.
                with self._failing(width, batch.sequences):
                    events += batch.step()
        return passes, events

    def _regroup(self) -> None:
        """Let sequences with few candidates left decode apart from those with many, if it pays."""
        guided = (Width.NARROW, Width.WIDE)
        held = {w: list(self._batches[w].sequences) for w in guided if w in self._batches}
        limit = narrow_width([len(s.proposal.feed) for batch in held.values() for s in batch])
        for source, target in (guided, guided[::-1]):
            narrow = target is Width.NARROW
            moving = [s for s in held.get(source, ()) if (len(s.proposal.feed) <= limit) is narrow]
            # The first move can lose the batch of the second.
            if moving and source in self._batches:
                self._join(target, moving)
                self._leave(source, moving)

    def _join(self, width: Width, joining: Collection[Sequence]) -> None:
        if joining:
            with self._failing(width, joining):
                if width not in self._batches:
                    self._batches[width] = Batch(self._engine)
                self._batches[width].join(joining)

    def _leave(self, width: Width, gone: Collection[Sequence]) -> None:
        with self._failing(width):
            self._batches[width].leave(gone)

    @contextlib.contextmanager
    def _failing(self, width: Width, concerned: Collection[Sequence] = ()) -> Iterator[None]:
        """After an error of the engine, those concerned and the whole batch have lost their rows.

        Args:
            width: Whose batch it is.
            concerned: Those that take part besides the ones that are in the batch afterwards.
        """
        concerned = tuple(concerned)
        try:
            yield
        except Exception as error:
            batch = self._batches.pop(width, None)
            fail([*concerned, *(batch.sequences if batch else ())], error)


def narrow_width(widths: Collection[int]) -> int:
    """Sequences that feed at most so many tokens should decode apart; 0 if it does not pay.

    Args:
        widths: Tokens that each sequence feeds in the next step.
    """
    widest = max(widths, default=0)
    widest += widest % 2

    def saved(narrow: int) -> int:
        """Rows that are not computed if a batch of its own is ``narrow`` instead of widest."""
        return sum(width <= narrow for width in widths) * (widest - narrow)

    best = max(range(2, widest, 2), key=saved, default=0)
    return best if best and saved(best) > PASS_ROWS else 0
