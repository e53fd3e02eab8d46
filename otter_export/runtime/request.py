"""A request, its tokens as they come, and its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from otter_export.errors import RequestError
from otter_export.runtime.methods.args_greedy import ArgsGreedy
from otter_export.runtime.methods.base import DecodingMethod


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt and how to continue it.

    Args:
        prompt: Text, or token ids.
        method: How tokens are chosen.
        max_tokens: Most tokens to generate, at least 1; the engine's ``max_sequence_length`` limits
            prompt and generated tokens together.
        stop: Generation ends when one of these texts appears; it is not part of the result's text.
        seed: Of the sequence's own random generator; None draws one. The result depends on the
            prompt, the options and the seed, never on the other requests of a batch; on the CPU bit
            for bit (docs/batching.md).

    Raises:
        RequestError: An option is out of range.
    """

    prompt: str | Sequence[int]
    method: DecodingMethod = dataclasses.field(default_factory=ArgsGreedy)
    max_tokens: int = 64
    stop: tuple[str, ...] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_prompt(self.prompt)
        if not isinstance(self.method, DecodingMethod):
            raise RequestError(
                f"method must be a decoding method such as ArgsGreedy(), got {self.method!r}"
            )
        if type(self.max_tokens) is not int or self.max_tokens < 1:
            raise RequestError(
                f"max_tokens must be an integer of at least 1, got {self.max_tokens!r}"
            )
        if self.seed is not None and (type(self.seed) is not int or not 0 <= self.seed < 1 << 64):
            raise RequestError(f"seed must be an integer from 0 to 2**64 - 1, got {self.seed!r}")
        object.__setattr__(self, "stop", _stop_words(self.stop))


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One next token that was scored.

    Args:
        token_id: The token.
        logit: Its logit.
        reward: Its reward.
        score: What the method compared.
    """

    token_id: int
    logit: float
    reward: float
    score: float


@dataclasses.dataclass(frozen=True)
class TokenEvent:
    """One generated token, as it comes.

    Args:
        request: Index of the request.
        token_id: The token.
        text: Text that it made certain: empty inside a character or a possible stop word, and
            whatever is left on the last token. The texts of a request add up to its result's.
        reward: Its reward.
        candidates: What was scored for its place, best logit first; candidates that could not win
            are left out.
        finish_reason: ``eos``, ``stop`` or ``length`` on the last token, else None.
    """

    request: int
    token_id: int
    text: str
    reward: float
    candidates: tuple[Candidate, ...]
    finish_reason: str | None


@dataclasses.dataclass(frozen=True)
class Result:
    """One finished request.

    Args:
        request: Index of the request.
        prompt: The prompt's text.
        prompt_ids: Its token ids.
        token_ids: Generated tokens, the end-of-sequence token included.
        text: Their text, without special tokens and up to the stop word.
        rewards: Reward of each generated token.
        finish_reason: ``eos``, ``stop`` or ``length``.
        forwards: Forward passes after the prompt that this request took part in.
        seconds: From the start of its prompt to its end.
    """

    request: int
    prompt: str
    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    text: str
    rewards: tuple[float, ...]
    finish_reason: str
    forwards: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """One line of ``otter-export generate --json``: all fields but ``request``."""
        fields = dataclasses.asdict(self)
        del fields["request"]
        return fields


def _check_prompt(prompt: object) -> None:
    if isinstance(prompt, str):
        try:
            prompt.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the prompt is not valid Unicode: character {error.start} is half of a surrogate "
                "pair or an undecodable byte; give it as UTF-8"
            ) from None
        return
    # Bytes are a sequence of integers too, but not of token ids.
    ids = prompt if isinstance(prompt, Sequence) and not isinstance(prompt, bytes) else [None]
    if any(type(token) is not int for token in ids):
        raise RequestError(f"a prompt must be text or a sequence of token ids, got {prompt!r:.80}")


def _stop_words(stop: object) -> tuple[str, ...]:
    words = (stop,) if isinstance(stop, str) else stop
    valid = isinstance(words, list | tuple) and all(isinstance(w, str) and w for w in words)
    if not valid or not isinstance(words, list | tuple):
        raise RequestError(f"stop must be texts of at least one character each, got {stop!r}")
    return tuple(words)
