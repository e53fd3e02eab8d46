"""One sequence that is being generated: what it feeds, and what it makes of the answer."""

from __future__ import annotations

import enum
import logging
import time
from collections import abc
from collections.abc import Iterable

from otter_export.errors import EngineError, OtterError, RequestError
from otter_export.quoting import quoted
from otter_export.runtime.detokenizer import TextStream
from otter_export.runtime.engine import Cache, Engine, Step
from otter_export.runtime.request import Request, Result, TokenEvent
from otter_export.runtime.scheduler.chooser import Chooser, Proposal, reward_signal

_LOG = logging.getLogger(__name__)


class State(enum.StrEnum):
    """Where a request is; ``ended``: its last event was sent, or is being sent."""

    QUEUED = "queued"
    PREFILLING = "prefilling"
    RUNNING = "running"
    ENDED = "ended"


class Sequence:
    """What is generated for one request.

    Once its prompt was fed, every token is `propose`, a forward pass over `Proposal.feed`, and
    `advance`, which proposes again.

    Args:
        number: Of the request; its events have it.
        request: The request.
        engine: Where it will run; gives tokenizer and limits.

    Attributes:
        state: Where the request is.
        prefilled: Tokens of the prompt that were fed.
        cache: The cache that holds its rows, once its prompt was begun and until it ends.
        cache_index: Its place among the cache's sequences.
        proposal: What it wants to be fed next, once its prompt was fed.
        token_ids: What was generated.
        finish_reason: ``eos``, ``stop`` or ``length`` once it is finished.
        error: Why it failed, or None.

    Raises:
        RequestError: The prompt is empty or too long, or the method does not fit the engine.
        EngineError: There is no such signal.
    """

    def __init__(self, number: int, request: Request, engine: Engine) -> None:
        if not isinstance(request, Request):
            raise RequestError(f"a request must be a Request, got {quoted(request)}")
        manifest = engine.manifest
        self.number = number
        self.request = request
        self._chooser = Chooser(
            request.method, reward_signal(manifest, request.method.signal), request.seed
        )
        self.prompt_ids = _encode(request.prompt, engine)
        count = request.method.candidate_count
        if count is not None and count > manifest.vocab_size:
            raise RequestError(
                f"top_k must be an integer from 1 to the vocabulary size {manifest.vocab_size}, "
                f"got {count}"
            )
        # The token at which the engine's limit ends the sequence, if nothing else does before.
        self._limit = min(request.max_tokens, manifest.max_sequence_length - len(self.prompt_ids))
        self._eos = frozenset(manifest.eos_token_ids)
        self._tokenizer = engine.tokenizer
        self._text = TextStream(engine.tokenizer, self.prompt_ids, request.stop)
        self._rewards: list[float] = []
        self._texts: list[str] = []
        self._forwards = 0
        self._started = 0.0
        self.state = State.QUEUED
        self.prefilled = 0
        self.cache: Cache | None = None
        self.cache_index = 0
        self.proposal: Proposal
        self.token_ids: list[int] = []
        self.finish_reason: str | None = None
        self.error: OtterError | None = None

    @property
    def length(self) -> int:
        """Tokens in the cache: the prompt and what was generated."""
        return len(self.prompt_ids) + len(self.token_ids)

    @property
    def max_length(self) -> int:
        """Tokens that it may have at its end."""
        return len(self.prompt_ids) + self._limit

    @property
    def feeds_one(self) -> bool:
        """Whether it feeds one token in the next step because no other can be the winner.

        That depends on this sequence alone, and with it the width of the step (docs/batching.md).
        """
        return self.proposal.winner is not None or self.request.method.candidate_count == 1

    def start(self, cache: Cache, index: int) -> None:
        """Its prompt is about to be fed into a cache: time starts."""
        self.cache, self.cache_index = cache, index
        self._started = time.perf_counter()

    def propose(self, step: Step, b: int, row: int) -> None:
        """Choose what to feed next; draws from the sequence's generator at most once.

        Args:
            step: The engine's answer; its row ``[b, row]`` is that of the last committed token.
            b: Index of this sequence in the step.
            row: Index of the row.

        Raises:
            EngineError: The answer is not finite.
        """
        signals = {name: values[b, row] for name, values in step.signals.items()}
        self.proposal = self._chooser.propose(step.logits[b, row], signals)

    def advance(self, step: Step, b: int) -> tuple[TokenEvent, int] | None:
        """Take the engine's answer to the proposal: the first rows of sequence b.

        Returns:
            The token, and which of the rows is now part of the sequence; None if candidates that
            were not fed can win after all: then those are proposed too.

        Raises:
            EngineError: The answer is not finite.
        """
        self._forwards += 1
        proposal = self.proposal
        answer = {n: values[b, : len(proposal.feed)] for n, values in step.signals.items()}
        choice = self._chooser.settle(proposal, answer)
        if isinstance(choice, Proposal):
            self.proposal = choice
            return None
        winner = choice.candidates[choice.winner]
        self.token_ids.append(winner.token_id)
        self._rewards.append(winner.reward)
        text = self._take_text(winner.token_id)
        if self.finish_reason is None:
            self.propose(step, b, choice.row)
        event = TokenEvent(
            request=self.number,
            token_id=winner.token_id,
            text=text,
            reward=winner.reward,
            candidates=choice.candidates,
            finish_reason=self.finish_reason,
            gated=proposal.gated,
        )
        return event, choice.row

    def _take_text(self, token: int) -> str:
        """Text that the newest token makes certain; sets `finish_reason`."""
        if token in self._eos:
            self.finish_reason = "eos"
            # The end of an incomplete character completes no stop word, unless U+FFFD is in it.
            text, _ = self._text.finish()
        else:
            text, stopped = self._text.push(token)
            if stopped:
                self.finish_reason = "stop"
            elif len(self.token_ids) >= self._limit:
                self.finish_reason = "length"
                text += self._text.finish()[0]
        self._texts.append(text)
        return text

    def result(self) -> Result:
        """The finished request."""
        prompt = self.request.prompt
        text = prompt if isinstance(prompt, str) else self._tokenizer.decode(self.prompt_ids)
        return Result(
            request=self.number,
            prompt=text,
            prompt_ids=tuple(self.prompt_ids),
            token_ids=tuple(self.token_ids),
            text="".join(self._texts),
            rewards=tuple(self._rewards),
            finish_reason=self.finish_reason or "length",
            forwards=self._forwards,
            seconds=time.perf_counter() - self._started,
        )

    def end(self) -> None:
        """Nothing more is generated, and its cache is free, whoever still has the request."""
        self.state, self.cache = State.ENDED, None


def fail(sequences: Iterable[Sequence], error: Exception) -> None:
    """The engine failed in a pass of these sequences; those that failed before keep their error."""
    if not isinstance(error, OtterError):
        _LOG.error("the engine failed", exc_info=error)
        cause, error = error, EngineError(f"the engine failed: {type(error).__name__}: {error}")
        error.__cause__ = cause
    for sequence in sequences:
        if sequence.error is None:
            sequence.error = error


def _encode(prompt: str | abc.Sequence[int], engine: Engine) -> list[int]:
    """The prompt's token ids, checked: their number first, since that costs nothing."""
    manifest, most = engine.manifest, engine.manifest.max_sequence_length - 1
    ids = _from_text(prompt, engine) if isinstance(prompt, str) else prompt
    if len(ids) > most:
        raise RequestError(
            f"the prompt has {len(ids)} tokens; the engine takes at most {most} and one to "
            "generate: shorten it, or build the engine with a larger --max-seq-len"
        )
    if not ids and manifest.bos_token_id is not None:
        ids = [manifest.bos_token_id]
    if not ids:
        raise RequestError(
            "the prompt is empty, and this model has no beginning-of-sequence token to start from; "
            "give at least one character"
        )
    outside = [token for token in ids if not 0 <= token < manifest.vocab_size]
    if outside:
        raise RequestError(
            f"the prompt has token id {quoted(outside[0])}; the engine's vocabulary is 0 to "
            f"{manifest.vocab_size - 1}"
        )
    return list(ids)


def _from_text(prompt: str, engine: Engine) -> list[int]:
    """Token ids of a text.

    Where the text itself begins with the token that the tokenizer puts in front of every text, it
    comes once, as it did in the model's training.
    """
    tokenizer, bos = engine.tokenizer, engine.manifest.bos_token_id
    ids = tokenizer.encode(prompt)
    if bos is not None and ids[:2] == [bos, bos] and tokenizer.encode("")[:1] == [bos]:
        _LOG.warning(
            "the prompt begins with the beginning-of-sequence token, which the tokenizer adds too; "
            "it is used once"
        )
        return ids[1:]
    return ids
