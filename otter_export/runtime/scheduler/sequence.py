"""One sequence that is being generated: what it feeds, and what it makes of the answer."""

from __future__ import annotations

import dataclasses
import enum
import logging
import time
from collections import abc
from collections.abc import Iterable

import numpy as np

from otter_export.config import Signal
from otter_export.engine_io import OUTPUT_KINDS, Q_VALUE
from otter_export.errors import EngineError, OtterError, RequestError
from otter_export.manifest import EngineManifest
from otter_export.quoting import LIMIT, one_line, quoted
from otter_export.runtime.detokenizer import TextStream
from otter_export.runtime.engine import Cache, Engine, FloatArray, IntArray, Step
from otter_export.runtime.methods.base import ScoreArray
from otter_export.runtime.request import Candidate, Request, Result, TokenEvent
from otter_export.runtime.sampler import possible_winners, score_range, top_candidates
from otter_export.runtime.scheduler.forecast import Forecast

_LOG = logging.getLogger(__name__)


class State(enum.StrEnum):
    """Where a request is; ``ended``: its last event was sent, or is being sent."""

    QUEUED = "queued"
    PREFILLING = "prefilling"
    RUNNING = "running"
    ENDED = "ended"


@dataclasses.dataclass(frozen=True)
class Proposal:
    """Candidates for the next token, and what to feed to the engine for it.

    Args:
        feed: ``[c]``: token ids to feed: the winner alone if it is known, else as many of the
            candidates, the first ones, as it is expected among.
        candidates: ``[k]``: ids of the candidates.
        logits: ``[k]``: their logits.
        rewards: ``[k]``: their rewards, or None if the step brings them.
        scores: ``[k]``: what the method compared, or None if that takes the rewards of the step.
        winner: Index of the winner among the candidates; None as for ``scores``.
        gated: Whether the method would have used rewards, had its gate been open.
    """

    feed: IntArray
    candidates: IntArray
    logits: FloatArray
    rewards: FloatArray | None = None
    scores: ScoreArray | None = None
    winner: int | None = None
    gated: bool = False


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
        self.signal = reward_signal(manifest, request.method.signal)
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
        self._generator = np.random.Generator(np.random.PCG64(request.seed))
        bounds = self.signal.bounds if request.method.prunes else None
        self._forecast = None if bounds is None else Forecast(bounds)
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
        method = self.request.method
        row_logits, signal = step.logits[b, row], step.signals[self.signal.name][b, row]
        ids = top_candidates(row_logits, method.candidate_count)
        logits = row_logits[ids]
        # A value scores the token that was fed, a q_value each that can follow it.
        rewards = signal[ids] if self.signal.kind == Q_VALUE else None
        if not method.guides(row_logits):
            scores = np.asarray(logits, np.float64)
            winner = method.choose(scores, self._generator)
            one = slice(winner, winner + 1)
            known = None if rewards is None else rewards[one]
            self.proposal = Proposal(
                ids[one], ids[one], logits[one], known, scores[one], 0, gated=method.needs_rewards
            )
        elif rewards is not None:
            scores = method.combine(logits, self._finite(rewards))
            winner = method.choose(scores, self._generator)
            feed = ids[winner : winner + 1]
            self.proposal = Proposal(feed, ids, logits, rewards, scores, winner)
        elif self._forecast is not None:
            bounds, expected = self._forecast.bounds, self._forecast.around(float(signal))
            kept = possible_winners(method.combine, logits, bounds)
            ids, logits = ids[kept], logits[kept]
            likely = np.flatnonzero(possible_winners(method.combine, logits, bounds, expected))
            self.proposal = Proposal(ids[: likely[-1] + 1], ids, logits)
        else:
            self.proposal = Proposal(ids, ids, logits)

    def advance(self, step: Step, b: int) -> tuple[TokenEvent, int] | None:
        """Take the engine's answer to the proposal: the first rows of sequence b.

        Returns:
            The token, and which of the rows is now part of the sequence; None if candidates that
            were not fed can win after all: then those are proposed too.

        Raises:
            EngineError: The answer is not finite.
        """
        proposal, method = self.proposal, self.request.method
        rewards, scores, winner, row = proposal.rewards, proposal.scores, proposal.winner, 0
        if rewards is None:
            rewards = step.signals[self.signal.name][b, : len(proposal.feed)]
        self._forwards += 1
        self._finite(rewards)
        if scores is None or winner is None:
            scores = method.combine(proposal.logits[: len(rewards)], rewards)
            if self._asks_again(scores):
                return None
            winner = row = method.choose(scores, self._generator)
        token, reward = int(proposal.candidates[winner]), float(rewards[winner])
        self.token_ids.append(token)
        self._rewards.append(reward)
        text = self._take_text(token)
        if self.finish_reason is None:
            self.propose(step, b, row)
        fed = len(scores)
        columns = (proposal.candidates[:fed], proposal.logits[:fed], rewards, scores)
        candidates = tuple(
            Candidate(int(t), float(z), float(r), float(s))
            for t, z, r, s in zip(*columns, strict=True)
        )
        event = TokenEvent(
            self.number, token, text, reward, candidates, self.finish_reason, proposal.gated
        )
        return event, row

    def _asks_again(self, scores: ScoreArray) -> bool:
        """Whether candidates that were not fed can beat these scores; they are proposed then."""
        proposal, fed = self.proposal, len(scores)
        if self._forecast is None or fed == len(proposal.candidates):
            return False
        combine, bounds = self.request.method.combine, self._forecast.bounds
        _, best = score_range(combine, proposal.logits[fed:], bounds)
        # At a tie the first wins, which was fed.
        possible = np.flatnonzero(best > scores.max())
        self._forecast.learn(held=not len(possible))
        if len(possible):
            feed = proposal.candidates[: fed + possible[-1] + 1]
            self.proposal = dataclasses.replace(proposal, feed=feed)
        return bool(len(possible))

    def _finite(self, rewards: FloatArray) -> FloatArray:
        if not np.isfinite(rewards).all():
            raise EngineError(
                f"the engine returned a {self.signal.name} that is NaN or infinite; check it with: "
                "otter-export verify DIR"
            )
        return rewards

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


def reward_signal(manifest: EngineManifest, name: str | None) -> Signal:
    """The signal that is the reward; None takes the first that scores next tokens.

    Raises:
        EngineError: There is none, or the named one does not score next tokens.
    """
    usable = [s for s in manifest.signals if s.kind in OUTPUT_KINDS]
    described = ", ".join(f"{s.name} ({s.kind})" for s in manifest.signals)
    if name is None and usable:
        return usable[0]
    if name is not None and manifest.signal(name) in usable:
        return manifest.signal(name)
    asked = f"asked for {one_line(name, LIMIT)}; " if name else ""
    raise EngineError(
        f"decoding needs a signal of kind {' or '.join(OUTPUT_KINDS)}; "
        f"{asked}the engine's signals: {described}"
    )


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
