"""Stop words, found in text that comes in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Passes text through up to the first stop word.

    The stop word that ends first counts; of those that end together the longest. So the result
    does not depend on how the text is cut into pieces.

    Args:
        stop: Stop words, none of them empty.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Take a piece of text.

        Returns:
            Text that no stop word can reach any more, and whether a stop word was found. After one
            was found, nothing else may be pushed.
        """
        text = self._held + text
        found = [(at + len(word), at) for word in self._stop if (at := text.find(word)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)[1]], True
        keep = self._begun(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False

    def finish(self) -> str:
        """Text that was held back because a stop word could have begun in it."""
        held, self._held = self._held, ""
        return held

    def _begun(self, text: str) -> int:
        """Length of the longest end of ``text`` with which a stop word begins."""
        longest = max((len(word) for word in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(word.startswith(text[len(text) - length :]) for word in self._stop):
                return length
        return 0
