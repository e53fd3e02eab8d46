"""`Penalties`: what a request takes from the logits before anything is chosen from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from otter_export.arguments import as_integer, integer, keep, number
from otter_export.errors import RequestError
from otter_export.quoting import quoted
from otter_export.runtime.engine import FloatArray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Penalties:
    """Penalties and bans of a request; without arguments it changes nothing.

    Args:
        repetition_penalty: 0.01 to 100: divides the positive logits of tokens that the prompt or
            the text has and multiplies their negative ones (CTRL, arXiv 1909.05858), as Hugging
            Face's ``RepetitionPenaltyLogitsProcessor`` does. 1 changes nothing.
        presence_penalty: -2 to 2, as OpenAI's: subtracted once from the logits of generated tokens.
        frequency_penalty: -2 to 2, as OpenAI's: subtracted as often as a token was generated.
        banned_tokens: Ids of tokens that are never generated, unless no other is left.
        min_tokens: Before so many tokens were generated, those that end the text are banned too.

    Raises:
        RequestError: A value is out of range.
    """

    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    banned_tokens: tuple[int, ...] = ()
    min_tokens: int = 0

    def __post_init__(self) -> None:
        keep(
            self,
            repetition_penalty=number(
                "repetition_penalty", self.repetition_penalty, minimum=0.01, maximum=100
            ),
            presence_penalty=_share("presence_penalty", self.presence_penalty),
            frequency_penalty=_share("frequency_penalty", self.frequency_penalty),
            banned_tokens=_token_ids(self.banned_tokens),
            min_tokens=integer("min_tokens", self.min_tokens, least=0),
        )

    def check(self, vocab_size: int) -> None:
        """Raise `RequestError` if a banned token is none of the engine's."""
        outside = [token for token in self.banned_tokens if token >= vocab_size]
        if outside:
            raise RequestError(
                f"banned_tokens has token id {quoted(outside[0])}; the engine's vocabulary is 0 to "
                f"{vocab_size - 1}"
            )

    def apply(
        self,
        logits: FloatArray,
        history: Sequence[int],
        prompt_length: int,
        eos: Collection[int],
    ) -> FloatArray:
        """The logits that everything after this reads.

        Args:
            logits: ``[V]`` float32; they are not changed.
            history: Token ids before the next one: the prompt's, then the generated ones.
            prompt_length: How many of them are the prompt's.
            eos: Token ids that end the text.

        Returns:
            ``[V]`` float32; banned tokens are minus infinity.
        """
        if self == _NONE:
            return logits
        changed = logits.copy()
        if self.repetition_penalty != 1:
            seen = np.unique(np.asarray(history, np.int64))
            found = changed[seen]
            factor = self.repetition_penalty
            changed[seen] = np.where(found < 0, found * factor, found / factor)
        if self.presence_penalty or self.frequency_penalty:
            generated = np.asarray(history[prompt_length:], np.int64)
            ids, counts = np.unique(generated, return_counts=True)
            changed[ids] -= self.presence_penalty + self.frequency_penalty * counts
        early = len(history) - prompt_length < self.min_tokens
        barred = [*self.banned_tokens, *(eos if early else ())]
        if not barred:
            return changed
        left = changed.copy()
        left[barred] = -np.inf
        return changed if left.max() == -np.inf else left


def _share(name: str, value: object) -> float:
    return number(name, value, minimum=-2, maximum=2)


def _token_ids(given: object) -> tuple[int, ...]:
    if isinstance(given, np.ndarray) and given.ndim == 1:
        given = given.tolist()
    if isinstance(given, list | tuple):
        ids = [token for one in given if (token := as_integer(one)) is not None and token >= 0]
        if len(ids) == len(given):
            return tuple(ids)
    raise RequestError(f"banned_tokens must be token ids, 0 or more each, got {quoted(given)}")


_NONE = Penalties()
