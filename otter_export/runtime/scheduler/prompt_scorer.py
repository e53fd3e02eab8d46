"""`PromptScorer`: the rewards of a prompt's own tokens, from the rows that feeding it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from otter_export.errors import EngineError
from otter_export.runtime.engine import FloatArray
from otter_export.runtime.request import PromptRewards
from otter_export.signals import Scores, Signal, kind_of


class PromptScorer:
    """Collects what rows say of the tokens that are there, as decoding reports it of new ones.

    A signal that scores a prefix says it in the token's own row, one that scores next tokens in the
    row before it; so for the latter the first token of a text has no reward.

    Args:
        signals: Which ones; the first is the reward.
        ids: The prompt.
        first: The first token that is scored.
    """

    def __init__(self, signals: Sequence[Signal], ids: Sequence[int], first: int) -> None:
        self._own = {s.name: kind_of(s).scores is Scores.PREFIX for s in signals}
        self._ids = np.asarray(ids)
        self._first = first
        # None where there is no row.
        self._values = {s.name: np.full(len(ids), np.nan, np.float32) for s in signals}

    @property
    def first_row(self) -> int:
        """The first token whose row says something."""
        return max(self._first - (not all(self._own.values())), 0)

    def take(self, start: int, rows: Mapping[str, FloatArray]) -> None:
        """Take the rows of the tokens from ``start`` on, ``[n, ...]`` of each signal.

        Raises:
            EngineError: A value is not finite.
        """
        for name, values in self._values.items():
            found = rows[name]
            if self._own[name]:
                at = slice(start, start + len(found))
            else:
                followers = self._ids[start + 1 : start + 1 + len(found)]
                found = found[np.arange(len(followers)), followers]
                at = slice(start + 1, start + 1 + len(found))
            if not np.isfinite(found).all():
                raise EngineError(
                    f"the engine returned a {name} that is NaN or infinite; check it with: "
                    "otter-export verify DIR"
                )
            values[at] = found

    def rewards(self) -> PromptRewards:
        """Those of the tokens from ``first`` on, once all rows were taken."""
        signals = {
            name: tuple(None if np.isnan(v) else float(v) for v in values[self._first :])
            for name, values in self._values.items()
        }
        return PromptRewards(next(iter(signals.values()), ()), signals)
