"""The decoding batches: who is decoded with whom."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

from otter_export.runtime.engine import Engine
from otter_export.runtime.request import TokenEvent
from otter_export.runtime.scheduler.batch import Batch
from otter_export.runtime.scheduler.sequence import Sequence, fail

#: What one more forward pass costs, in rows: on CPUs about 8 (int8) to 12 (fp32), and some copying.
PASS_ROWS = 16


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
        self._batches: list[Batch] = []

    def join(self, sequences: Collection[Sequence]) -> None:
        """Let sequences decode whose prompt is complete."""
        self._regroup(sequences)

    def remove(self, gone: Collection[Sequence]) -> None:
        """Take sequences out; one that is not here is no error."""
        for batch in list(self._batches):
            self._leave(batch, gone)

    def step(self) -> tuple[int, list[TokenEvent]]:
        """Run one step of each batch: a token for each sequence, or several.

        Returns:
            Forward passes, and the tokens.
        """
        self._regroup()
        passes = 0
        events: list[TokenEvent] = []
        for batch in list(self._batches):
            if batch.sequences:
                passes += 1
                # Those that finish leave the batch before its step is over.
                with self._failing(batch, batch.sequences):
                    events += batch.step()
        return passes, events

    def _regroup(self, joining: Collection[Sequence] = ()) -> None:
        """Give every sequence its batch for the next step; the fewer move, the better."""
        everyone = [*joining, *(s for batch in self._batches for s in batch.sequences)]
        homes: dict[Batch, set[Sequence]] = {}
        for group in self._groups(everyone):
            if home := self._home(group, homes):
                homes[home] = group
        for batch, group in homes.items():
            if batch not in self._batches:
                # Lost by a move before: begin anew with those who are left.
                held = {s for other in self._batches for s in other.sequences}
                left = [s for s in joining if s.error is None and s not in held]
                self._regroup(left)
                return
            coming = group.difference(batch.sequences)
            self._join(batch, [s for s in everyone if s in coming and s.error is None])
            for other in list(self._batches):
                if other is not batch:
                    self._leave(other, coming)

    def _groups(self, sequences: Collection[Sequence]) -> list[set[Sequence]]:
        """Who is decoded with whom, the most numerous first."""
        if not self._separate:
            return [set(sequences)] if sequences else []
        even = self._engine.even_steps
        one = {s for s in sequences if s.feeds_one}
        if one and not even:
            one |= {s for s in sequences if len(s.fed) == 1}
        many = set(sequences) - one
        limit = narrow_width([len(s.fed) for s in many], even=even)
        narrow = {s for s in many if len(s.fed) <= limit}
        return sorted(filter(None, (one, narrow, many - narrow)), key=len, reverse=True)

    def _home(self, group: set[Sequence], taken: Collection[Batch]) -> Batch | None:
        """The batch that holds most of a group, of those that no other group has; or a new one."""
        free = [batch for batch in self._batches if batch not in taken]
        if not free:
            with self._failing(None, group):
                free = [Batch(self._engine)]
                self._batches += free
        return max(free, key=lambda batch: len(group.intersection(batch.sequences)), default=None)

    def _join(self, batch: Batch, joining: Collection[Sequence]) -> None:
        if joining:
            with self._failing(batch, joining):
                batch.join(joining)

    def _leave(self, batch: Batch, gone: Collection[Sequence]) -> None:
        with self._failing(batch, ()):
            batch.leave(gone)

    @contextlib.contextmanager
    def _failing(self, batch: Batch | None, concerned: Collection[Sequence]) -> Iterator[None]:
        """After an error of the engine, those concerned and the whole batch have lost their rows.

        Args:
            batch: The batch, if there is one by then.
            concerned: Those that take part besides the ones that are in the batch afterwards.
        """
        concerned = tuple(concerned)
        try:
            yield
        except Exception as error:
            if batch is not None:
                self._batches.remove(batch)
            fail([*concerned, *(batch.sequences if batch else ())], error)


def narrow_width(widths: Collection[int], *, even: bool) -> int:
    """Sequences that feed at most so many tokens should decode apart; 0 if it does not pay.

    Args:
        widths: Tokens that each sequence feeds in the next step.
        even: Whether steps have an even number of tokens (`Engine.even_steps`).
    """
    stride = 2 if even else 1
    widest = max(widths, default=0)
    widest += widest % stride

    def saved(narrow: int) -> int:
        """Rows that are not computed if a batch of its own is ``narrow`` instead of widest."""
        return sum(width <= narrow for width in widths) * (widest - narrow)

    best = max(range(stride, widest, stride), key=saved, default=0)
    return best if best and saved(best) > PASS_ROWS else 0
