"""A request, its tokens as they come, and its result."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from otter_export.arguments import as_integer, integer, keep
from otter_export.errors import RequestError
from otter_export.quoting import quoted
from otter_export.runtime.chat import Chat
from otter_export.runtime.drafts import NONE
from otter_export.runtime.methods.args_greedy import ArgsGreedy
from otter_export.runtime.methods.base import DecodingMethod
from otter_export.runtime.penalties import Penalties

#: Characters of a prompt or a stop word: a tokenizer takes about 250 times as many bytes.
_MAX_TEXT = 4 << 20


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt and how to continue it.

    Args:
        prompt: Text, or token ids; an array ``[n]`` of integers too. Or the messages of a `Chat`,
            also as a list of ``{"role": ..., "content": ...}``.
        method: How tokens are chosen.
        max_tokens: Most tokens to generate, at least 1; the engine's ``max_sequence_length`` limits
            prompt and generated tokens together. 0 with ``rewards_from``: the prompt is scored, and
            nothing is generated.
        stop: Generation ends when one of these texts appears, special tokens written out; it is not
            part of the result's text. One text is as good as several, and None as good as none.
        seed: Of the sequence's own random generator; None draws one. The result depends on the
            prompt, the options and the seed, never on the other requests of a batch; on the CPU bit
            for bit (docs/batching.md).
        penalties: Penalties and bans, which come before anything is chosen.
        drafts: What guesses the tokens behind the next one, to be checked in the same step:
            ``none``, ``lookup`` (n-grams of the prompt and the text), the name of a ``medusa``
            signal, or ``auto``. It changes the time, never a token.
        rewards_from: The first token of the prompt whose reward is reported too, such as 0 for all
            of them; None: no reward of the prompt is.

    Raises:
        RequestError: An option is out of range.
    """

    prompt: str | Sequence[int] | Chat
    method: DecodingMethod = dataclasses.field(default_factory=ArgsGreedy)
    max_tokens: int = 64
    stop: tuple[str, ...] = ()
    seed: int | None = None
    penalties: Penalties = dataclasses.field(default_factory=Penalties)
    drafts: str = NONE
    rewards_from: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.method, DecodingMethod):
            raise RequestError(
                f"method must be a decoding method such as ArgsGreedy(), got {quoted(self.method)}"
            )
        if not isinstance(self.penalties, Penalties):
            raise RequestError(
                f"penalties must be Penalties(...) such as Penalties(repetition_penalty=1.2), got "
                f"{quoted(self.penalties)}"
            )
        keep(
            self,
            prompt=_checked_prompt(self.prompt),
            max_tokens=integer("max_tokens", self.max_tokens, least=int(self.rewards_from is None)),
            stop=stop_words(self.stop),
        )
        if self.seed is not None:
            described = "from 0 to 2**64 - 1"
            seed = integer("seed", self.seed, least=0, most=(1 << 64) - 1, described=described)
            keep(self, seed=seed)
        if self.rewards_from is not None:
            keep(self, rewards_from=integer("rewards_from", self.rewards_from, least=0))
        # Which names there are depends on the engine, where the sequence checks it.
        if not isinstance(self.drafts, str):
            raise RequestError(f"drafts must be the name of a drafter, got {quoted(self.drafts)}")

    def check_generates(self, what: str) -> None:
        """Raise `RequestError` if rewards of the prompt are asked for, which ``what`` has not."""
        if self.rewards_from is not None:
            raise RequestError(
                f"{what} does not report rewards of the prompt; leave out rewards_from"
            )


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One next token that was scored.

    Args:
        token_id: The token.
        logit: Its logit, after penalties.
        reward: Its value of the signal that is the reward; of several, of the first. None if the
            engine has none.
        score: What the method compared; where a minimum left the token out, what it would have.
        signals: Its values of all signals that the method reads, by name.
    """

    token_id: int
    logit: float
    reward: float | None
    score: float
    signals: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)


@dataclasses.dataclass(frozen=True)
class PromptRewards:
    """Rewards of a prompt's own tokens, from the one that ``Request.rewards_from`` names.

    Args:
        rewards: One a token, as a generated token's; None for the first token of a text where the
            signal scores a token by the row before it.
        signals: Values of each signal that the method reads, one a token, by name.
    """

    rewards: tuple[float | None, ...]
    signals: Mapping[str, tuple[float | None, ...]] = dataclasses.field(hash=False)


@dataclasses.dataclass(frozen=True)
class TokenEvent:
    """One generated token, as it comes.

    Args:
        request: Index of the request.
        token_id: The token.
        text: Text that it made certain: empty inside a character or a possible stop word, and
            whatever is left on the last token. The texts of a request add up to its result's.
        reward: Its reward, as a candidate's.
        candidates: What was scored for its place, best logit first; candidates that could not win
            are left out, and all but about 64 where any token was one.
        finish_reason: ``eos``, ``stop`` or ``length`` on the last token, else None.
        gated: Whether a guided method's gate was closed: it was chosen without rewards.
        signals: As a candidate's.
        prompt_rewards: Those of the prompt, on the first token, where they were asked for.
    """

    request: int
    token_id: int
    text: str
    reward: float | None
    candidates: tuple[Candidate, ...]
    finish_reason: str | None
    gated: bool = False
    signals: Mapping[str, float] = dataclasses.field(default_factory=dict, hash=False)
    prompt_rewards: PromptRewards | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """One finished request.

    Args:
        request: Index of the request.
        prompt: The prompt's text; of a chat, what its template made of it.
        prompt_ids: Its token ids.
        token_ids: Generated tokens, the end-of-sequence token included.
        text: Their text, without special tokens and up to the stop word.
        rewards: Reward of each generated token; none if the engine has no signal that scores.
        finish_reason: ``eos``, ``stop`` or ``length``.
        forwards: Forward passes after the prompt that this request took part in.
        seconds: From the start of its prompt to its end.
        signals: Values of each signal that the method reads, one a token, by name.
        drafted: Drafts that were fed; None if none were asked for.
        accepted: Those of them that were right.
        prompt_rewards: Of the prompt's own tokens; None if they were not asked for.
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
    signals: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict, hash=False)
    drafted: int | None = None
    accepted: int | None = None
    prompt_rewards: PromptRewards | None = None

    def to_json(self) -> dict[str, Any]:
        """One line of ``otter-export generate --json``: all fields but ``request``.

        ``signals`` is there only if there are several, and the counts of drafts and the rewards of
        the prompt if they were asked for.
        """
        fields = dataclasses.asdict(self)
        del fields["request"], fields["prompt_rewards"]
        if (scored := self.prompt_rewards) is not None:
            fields["prompt_rewards"] = scored.rewards
            if len(scored.signals) > 1:
                fields["prompt_signals"] = scored.signals
        if len(self.signals) < 2:
            del fields["signals"]
        if self.drafted is None:
            del fields["drafted"], fields["accepted"]
        return fields


def _checked_prompt(prompt: object) -> str | Sequence[int] | Chat:
    """The prompt, with token ids as Python integers."""
    if isinstance(prompt, Chat):
        return prompt
    if isinstance(prompt, str):
        _check_text("the prompt", prompt)
        return str(prompt)
    if isinstance(prompt, np.ndarray) and prompt.ndim == 1:
        prompt = prompt.tolist()
    # Bytes are a sequence of integers too, but not of token ids.
    if isinstance(prompt, Sequence) and not isinstance(prompt, bytes | bytearray | memoryview):
        if prompt and all(isinstance(message, Mapping) for message in prompt):
            return Chat(tuple(prompt))
        if all(type(token) is int for token in prompt):
            return prompt
        ids = [token for given in prompt if (token := as_integer(given)) is not None]
        if len(ids) == len(prompt):
            return ids
    raise RequestError(f"a prompt must be text or a sequence of token ids, got {quoted(prompt)}")


def stop_words(stop: object) -> tuple[str, ...]:
    """Stop words from one text, several or None.

    Raises:
        RequestError: They are none, or one is empty or not valid Unicode.
    """
    words = () if stop is None else (stop,) if isinstance(stop, str) else stop
    valid = isinstance(words, list | tuple) and all(isinstance(w, str) and w for w in words)
    if not valid or not isinstance(words, list | tuple):
        raise RequestError(f"stop must be texts of at least one character each, got {quoted(stop)}")
    for word in words:
        _check_text("a stop word", word)
    return tuple(map(str, words))


def _check_text(what: str, text: str) -> None:
    if len(text) > _MAX_TEXT:
        raise RequestError(f"{what} has {len(text)} characters; at most {_MAX_TEXT} are read")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"{what} is not valid Unicode: character {error.start} is half of a surrogate "
            "pair or an undecodable byte; give it as UTF-8"
        ) from None
