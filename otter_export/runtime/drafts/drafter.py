"""`Drafter`: guesses the tokens behind the next one, to be fed in the same step as that one."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping, Sequence

from otter_export.runtime.drafts.tree import TokenTree
from otter_export.runtime.engine import FloatArray
from otter_export.runtime.executor import MOST_CHAINED

#: Most tokens of a sequence that has drafts in a step, the next one among them: as many as engines
#: try to give the bits that they get alone.
MOST_ROWS = MOST_CHAINED


@dataclasses.dataclass(frozen=True)
class Draft:
    """What a drafter guesses.

    Args:
        tree: Behind the next token; the more likely first.
        source: What the guess is made of: guesses of one source are about equally good.
    """

    tree: TokenTree = dataclasses.field(default_factory=TokenTree)
    source: str = ""


class Drafter(abc.ABC):
    """One request's drafter.

    A wrong guess costs time, never a result. What it draws depends on its arguments alone; it may
    keep what it worked out from them.
    """

    @abc.abstractmethod
    def draft(
        self,
        history: Sequence[int],
        token: int,
        signals: Mapping[str, FloatArray],
        most: int,
    ) -> Draft:
        """Guess what follows a token.

        Args:
            history: Token ids of the prompt and the text; longer in each call, else the same.
            token: The next one, behind which the drafts are fed. It is sure to come, but for one of
                several candidates.
            signals: What the engine gave for the last token of the history, by name.
            most: At least 1; tokens beyond so many are left out.
        """
