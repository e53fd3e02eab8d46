"""The queue of prompts that are being fed: short ones together, long ones in chunks, in turns."""

from __future__ import annotations

import collections
from collections.abc import Collection

from otter_export.errors import EngineError
from otter_export.runtime.engine import Engine
from otter_export.runtime.prefill import CHUNK_TOKENS, feed
from otter_export.runtime.scheduler.sequence import Sequence, fail

#: Prompts that share a pass differ by fewer tokens than this, so that little is padding, and few
#: rows of logits are computed for nothing.
SIMILAR = 16


class PrefillQueue:
    """Sequences whose prompt is being fed, one forward pass at a time.

    Prompts take turns, so a short one never waits for a long one to be complete, and a long one
    waits at most as many turns as there are others. Short prompts that have not begun share a pass.
    What a prompt is fed depends on itself alone: it is cut into chunks from its beginning.

    Args:
        engine: The engine.
        chunk: Most tokens of a pass, padding included.
    """

    def __init__(self, engine: Engine, chunk: int = CHUNK_TOKENS) -> None:
        self._engine = engine
        self._chunk = chunk
        self._queue: collections.deque[Sequence] = collections.deque()

    def __len__(self) -> int:
        """Prompts that are not complete."""
        return len(self._queue)

    def add(self, sequence: Sequence) -> None:
        """Let a prompt wait for its turn."""
        self._queue.append(sequence)

    def remove(self, gone: Collection[Sequence]) -> None:
        """Forget prompts, begun or not; one that is not here is no error."""
        self._queue = collections.deque(s for s in self._queue if s not in gone)

    def step(self) -> tuple[int, list[Sequence]]:
        """Run one forward pass over those whose turn it is; the complete and the failed leave.

        Returns:
            Prompt tokens that were fed, and the sequences whose prompt is complete: they can decode
            now, or are finished where nothing is to be generated.
        """
        turn = self._turn()
        if not turn:
            return 0, []
        parts = [s.prompt_ids[s.prefilled : s.prefilled + self._chunk] for s in turn]
        try:
            cache = turn[0].cache
            if cache is None:
                cache = self._engine.new_cache(len(turn))
                for index, sequence in enumerate(turn):
                    sequence.start(cache, index)
            wanted = [row for s in turn if (row := s.first_row) is not None]
            fed = feed(self._engine, cache, parts, min(wanted, default=None))
        except Exception as error:
            fail(turn, error)
            self.remove(turn)
            return 0, []
        self._queue.rotate(-1)
        for index, sequence in enumerate(turn):
            try:
                sequence.take_prompt(fed, index)
            except EngineError as error:
                sequence.error = error
        left = [s for s in turn if s.error or s.prefilled == len(s.prompt_ids)]
        complete = [s for s in left if not s.error]
        self.remove(left)
        return sum(len(part) for part in parts), complete

    def _turn(self) -> list[Sequence]:
        """The first prompt, and all that can share its pass."""
        turn: list[Sequence] = []
        for sequence in self._queue:
            left = [len(s.prompt_ids) - s.prefilled for s in (*turn, sequence)]
            fits = len(left) * max(left) <= self._chunk
            alike = max(left) - min(left) < SIMILAR
            # Rows that are only scored are many, and must not change those of the others.
            alike &= not turn or (sequence.first_row is None) == (turn[0].first_row is None)
            if not turn or (not sequence.prefilled and alike and fits):
                turn.append(sequence)
            if turn[0].prefilled:
                break
        return turn
