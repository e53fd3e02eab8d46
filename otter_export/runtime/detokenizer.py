"""Text of tokens as they come: never half a character, and up to a stop word."""

from __future__ import annotations

import collections
from collections.abc import Sequence

from otter_export.runtime.engine import Tokenizer

#: What decoders write for bytes that are not (yet) UTF-8.
_REPLACEMENT = "\ufffd"
#: Prompt tokens decoded along, for tokenizers that treat the first word of a text differently.
_CONTEXT = 5


class Detokenizer:
    """Incremental decoding of one sequence.

    The text of a token depends on its neighbours: bytes of one character are spread over tokens,
    and some tokenizers drop the space before the first word. So each token is decoded together
    with the ones before it, and the difference is emitted, held back while it ends inside a
    character (vLLM and text-generation-inference do the same).

    Args:
        tokenizer: Decodes token ids.
        prompt_ids: The prompt, as context; none of its text is emitted.
        special: Whether special tokens have text.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = (), *, special: bool = False
    ) -> None:
        self._tokenizer = tokenizer
        self._skip = not special
        self._ids = list(prompt_ids[-_CONTEXT:])
        # ids[:emitted] are out already, and are decoded again as context of the rest.
        self._emitted = len(self._ids)

    def push(self, token_id: int) -> str:
        """Text that this token makes certain; empty while a character is incomplete."""
        self._ids.append(token_id)
        return self._take(final=False)

    def finish(self) -> str:
        """What was held back; the rest of an incomplete character comes as U+FFFD."""
        return self._take(final=True)

    def _take(self, final: bool) -> str:
        before = self._decode(self._ids[: self._emitted])
        after = self._decode(self._ids)
        incomplete = after.endswith(_REPLACEMENT) and not final
        if len(after) <= len(before) or incomplete:
            return ""
        # What was just emitted is context enough for what follows; forget the rest, so that a
        # token costs the same at any length.
        self._ids = self._ids[self._emitted :]
        self._emitted = len(self._ids)
        return after[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip)


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


class TextStream:
    """The text of one sequence as its tokens come: without special tokens, up to a stop word.

    Stop words are found in the text with special tokens, so that every one of them can be a stop.
    What is shown is the same text without them, cut at the same place.

    Args:
        tokenizer: Decodes token ids.
        prompt_ids: The prompt.
        stop: Stop words, none of them empty.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int], stop: Sequence[str]
    ) -> None:
        self._shown = Detokenizer(tokenizer, prompt_ids)
        # Without stop words or special tokens both texts are the same, and one decoding is enough.
        self._whole: Detokenizer | None = None
        if stop and tokenizer.special_ids:
            self._whole = Detokenizer(tokenizer, prompt_ids, special=True)
        self._finder = StopFinder(stop)
        # Pieces that the finder holds: how long each is with special tokens, and what is shown.
        self._pieces: collections.deque[tuple[int, str]] = collections.deque()

    def push(self, token_id: int) -> tuple[str, bool]:
        """Take a token.

        Returns:
            Text that it makes certain, and whether a stop word was found, after which nothing else
            may be pushed.
        """
        shown = self._shown.push(token_id)
        return self._take(shown, shown if self._whole is None else self._whole.push(token_id))

    def finish(self) -> tuple[str, bool]:
        """What was held back, up to a stop word if the end completes one."""
        shown = self._shown.finish()
        text, found = self._take(shown, shown if self._whole is None else self._whole.finish())
        if not found:
            rest = self._finder.finish()
            text += rest if self._whole is None else self._release(len(rest))
        return text, found

    def _take(self, shown: str, whole: str) -> tuple[str, bool]:
        released, found = self._finder.push(whole)
        if self._whole is None:
            return released, found
        self._pieces.append((len(whole), shown))
        return self._release(len(released)), found

    def _release(self, count: int) -> str:
        """What is shown of the next ``count`` characters of the text with special tokens."""
        texts = []
        while self._pieces:
            length, shown = self._pieces[0]
            if count < length:
                # Where the two differ, what is not shown comes first: a special token, or a space.
                kept = max(count - (length - len(shown)), 0) if count else 0
                texts.append(shown[:kept])
                self._pieces[0] = (length - count, shown[kept:])
                break
            self._pieces.popleft()
            texts.append(shown)
            count -= length
        return "".join(texts)
