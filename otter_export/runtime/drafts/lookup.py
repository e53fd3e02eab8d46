"""``lookup``: what followed the same few tokens before, in the prompt or in the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from otter_export.runtime.drafts.drafter import Draft, Drafter
from otter_export.runtime.drafts.tree import TokenTree
from otter_export.runtime.engine import Engine, FloatArray

#: By the number of tokens that agree, the longest first: how many are drafted. The longer the
#: match, the more likely is its continuation; with the token before them they are an even number.
LENGTHS = {3: 7, 2: 3, 1: 1}


class Lookup(Drafter):
    """Prompt lookup: n-grams of the history, without a model.

    The last 3 tokens, else 2, else 1 are looked for; where they occurred last, their continuation
    is the draft. It may run on into the draft itself, so a text that repeats itself is followed.
    Each token is taken into the index once, so a step costs the same at any length.
    """

    def __init__(self) -> None:
        # Where an n-gram ends that occurred last; of all lengths.
        self._ends: dict[tuple[int, ...], int] = {}
        self._indexed = 0

    def draft(
        self,
        history: Sequence[int],
        token: int,
        signals: Mapping[str, FloatArray],
        most: int,
    ) -> Draft:
        """The continuation of the longest match; see `Drafter.draft`."""
        del signals
        self._index(history)
        last = (*history[-max(LENGTHS) + 1 :], token)
        for size, length in LENGTHS.items():
            end = self._ends.get(last[-size:]) if len(last) >= size else None
            if end is not None:
                tokens = _continuation(history, token, end + 1, min(length, most))
                return Draft(TokenTree.chain(tokens), f"lookup {size}")
        return Draft()

    def _index(self, history: Sequence[int]) -> None:
        for end in range(self._indexed, len(history)):
            for size in LENGTHS:
                if size <= end + 1:
                    self._ends[tuple(history[end + 1 - size : end + 1])] = end
        self._indexed = len(history)


def _continuation(history: Sequence[int], token: int, start: int, count: int) -> list[int]:
    """``count`` tokens from a place in history, token and what is read here, one after another."""
    behind = [token]
    for place in range(start - len(history), start - len(history) + count):
        behind.append(history[place] if place < 0 else behind[place])
    return behind[1:]


def make_lookup(engine: Engine) -> Lookup:
    """For one request; it needs nothing of the engine."""
    del engine
    return Lookup()
