"""``auto``: the draft, of any length and none too, that should give the most tokens a second."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from otter_export.runtime.drafts.drafter import Draft, Drafter
from otter_export.runtime.drafts.lookup import Lookup
from otter_export.runtime.drafts.medusa import MedusaHeads, drafting
from otter_export.runtime.drafts.row_costs import RowCosts, row_costs
from otter_export.runtime.engine import Engine, FloatArray

#: How much an earlier guess counts for each later one of its kind, and what is taken for the first.
_KEPT, _FIRST = 0.97, 0.5


class Auto(Drafter):
    """Compares what is likely to be accepted with what the rows cost.

    Every drafter guesses in each step, fed or not, and every guess is compared with the text when
    that is there. So the rates are those of this request, and drafting is taken up again where it
    begins to pay.

    Args:
        drafters: To choose among; they draft chains.
        costs: Of the engine.
    """

    def __init__(self, drafters: Sequence[Drafter], costs: RowCosts) -> None:
        self._drafters = tuple(drafters)
        self._costs = costs
        self._open: list[_Guess] = []
        self._rates: dict[tuple[str, int], _Rate] = {}

    def draft(
        self,
        history: Sequence[int],
        token: int,
        signals: Mapping[str, FloatArray],
        most: int,
    ) -> Draft:
        """The guess and the length of it that promise most; see `Drafter.draft`."""
        self._open = [guess for guess in self._open if self._check(guess, history, token)]
        best, speed = Draft(), 1.0 / self._costs.seconds(1)
        for drafter in self._drafters:
            draft = drafter.draft(history, token, signals, most)
            self._open.append(_Guess(draft, len(history) + 1))
            tokens = reached = 1.0
            for depth in range(len(draft.tree)):
                reached *= self._rate(draft.source, depth).share
                tokens += reached
                if (promised := tokens / self._costs.seconds(2 + depth)) > speed:
                    speed = promised
                    best = dataclasses.replace(draft, tree=draft.tree.first(depth + 1))
        return best

    def _check(self, guess: _Guess, history: Sequence[int], token: int) -> bool:
        """Learn from what is known of a guess by now; whether there is more to learn."""
        tokens = guess.draft.tree.tokens
        while guess.checked < len(tokens):
            place = guess.start + guess.checked
            if place > len(history):
                return True
            came = history[place] if place < len(history) else token
            held = tokens[guess.checked] == came
            self._rate(guess.draft.source, guess.checked).learn(held)
            if not held:
                return False
            guess.checked += 1
        return False

    def _rate(self, source: str, depth: int) -> _Rate:
        return self._rates.setdefault((source, depth), _Rate())


@dataclasses.dataclass
class _Guess:
    """A draft, the place of its first token in the text, and how much of it came true."""

    draft: Draft
    start: int
    checked: int = 0


class _Rate:
    """How often a draft at some depth is right, where those before it were."""

    def __init__(self) -> None:
        self._held, self._tried = _FIRST, 1.0

    @property
    def share(self) -> float:
        return self._held / self._tried

    def learn(self, held: bool) -> None:
        self._held = _KEPT * self._held + held
        self._tried = _KEPT * self._tried + 1


def make_auto(engine: Engine) -> Auto:
    """For one request: lookup, and the engine's signals that draft."""
    heads = [MedusaHeads.of(engine, signal) for signal in drafting(engine.manifest)]
    return Auto([Lookup(), *heads], row_costs(engine))
