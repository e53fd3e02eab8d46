"""The cost of a step by its number of rows, on this machine, from the steps that are run anyway."""

from __future__ import annotations

import collections
import itertools
import weakref

from otter_export.runtime.drafts.drafter import MOST_ROWS
from otter_export.runtime.engine import Engine

#: Steps of a size of which the quickest counts, and how many make the size known.
_KEPT, _ENOUGH = 5, 3


class RowCosts:
    """Times of an engine's steps.

    What was not measured yet is taken to be cheap, so that it is tried: between two known sizes in
    proportion, below the smallest by the row, above the largest nothing up to `MOST_ROWS` rows.

    Args:
        even: Whether a step of several tokens has an even number of them.
    """

    def __init__(self, even: bool) -> None:
        self._even = even
        self._times: dict[int, collections.deque[float]] = {}
        self._sequences = 1
        #: Rows and seconds of the sizes that are known, as of the last step; made when asked for.
        self._known: list[tuple[int, float]] | None = None

    def record(self, sequences: int, width: int, seconds: float) -> None:
        """A step was run over so many sequences, each of so many tokens."""
        times = self._times.setdefault(sequences * width, collections.deque(maxlen=_KEPT))
        times.append(seconds)
        self._known = None
        self._sequences = sequences

    def seconds(self, width: int) -> float:
        """Of a step in which each sequence has so many tokens, as many as the last step had.

        Args:
            width: Tokens of each.
        """
        if self._even and width > 1:
            width += width % 2
        return self._of_rows(self._sequences * width)

    def _of_rows(self, rows: int) -> float:
        if self._known is None:
            # The quickest, for whatever else the machine does can only add.
            times = self._times.items()
            self._known = sorted((n, min(t)) for n, t in times if len(t) >= _ENOUGH)
        known = self._known
        if not known:
            return 1.0
        (least, first), (most, last) = known[0], known[-1]
        if rows <= least:
            return first * rows / least
        if rows >= most:
            return last * max(1.0, rows / max(most, MOST_ROWS))
        for (low, cheap), (high, dear) in itertools.pairwise(known):
            if rows <= high:
                return cheap + (dear - cheap) * (rows - low) / (high - low)
        return last


_COSTS: weakref.WeakKeyDictionary[Engine, RowCosts] = weakref.WeakKeyDictionary()


def row_costs(engine: Engine) -> RowCosts:
    """Those of an engine, kept as long as it is."""
    if engine not in _COSTS:
        _COSTS[engine] = RowCosts(engine.even_steps)
    return _COSTS[engine]
