"""One sequence that is being generated: what it feeds, and what it makes of the answer."""

from __future__ import annotations

import dataclasses
import time

import numpy as np

from otter_export.config import Signal
from otter_export.errors import EngineError, RequestError
from otter_export.manifest import EngineManifest
from otter_export.runtime.candidates import possible_winners, top_candidates
from otter_export.runtime.detokenize import Detokenizer
from otter_export.runtime.engine import Engine, FloatArray, IntArray, Step
from otter_export.runtime.request import Candidate, Request, Result, TokenEvent
from otter_export.runtime.stopping import StopFinder

#: Signal kinds that score next tokens.
REWARD_KINDS = ("value", "q_value")


@dataclasses.dataclass(frozen=True)
class Proposal:
    """What a sequence wants to be fed next.

    Args:
        fed: ``[c]``: token ids to feed; one if the winner is known, else all candidates.
        scored: ``[k]``: ids of the candidates with their logits ``[k]`` and, where a row gave them
            already, rewards ``[k]``.
        winner: Index of the winner in ``scored``, or None if it takes the rewards of the step.
    """

    fed: IntArray
    scored: IntArray
    logits: FloatArray
    rewards: FloatArray | None
    winner: int | None


class SequenceState:
    """State of one request.

    Attributes:
        proposal: What it wants to be fed next, once its prompt was fed.
        finish_reason: ``eos``, ``stop`` or ``length`` once it is finished.

    Args:
        index: Index of the request.
        request: The request.
        engine: Where it will run; gives tokenizer and limits.

    Raises:
        RequestError: The prompt is empty or too long, or the method does not fit the engine.
        EngineError: There is no such signal.
    """

    def __init__(self, index: int, request: Request, engine: Engine) -> None:
        manifest = engine.manifest
        self.index = index
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
        self._detokenizer = Detokenizer(engine.tokenizer, self.prompt_ids)
        self._stop = StopFinder(request.stop)
        self._tokens: list[int] = []
        self._rewards: list[float] = []
        self._texts: list[str] = []
        self._forwards = 0
        self._started = time.perf_counter()
        self.proposal: Proposal
        self.finish_reason: str | None = None

    @property
    def length(self) -> int:
        """Tokens in the cache: the prompt and what was generated."""
        return len(self.prompt_ids) + len(self._tokens)

    @property
    def longest(self) -> int:
        """Tokens that it may have at its end."""
        return len(self.prompt_ids) + self._limit

    @property
    def single(self) -> bool:
        """Whether it feeds one token per step, always, because the winner is known by then."""
        method = self.request.method
        known = not method.needs_rewards or self.signal.kind == "q_value"
        return known or method.candidate_count == 1

    def start(self) -> None:
        """The prompt is about to be fed: time starts."""
        self._started = time.perf_counter()

    def see(self, step: Step, b: int) -> None:
        """Take the engine's answer at the end of the prompt: row b's last.

        Raises:
            EngineError: The answer is not finite.
        """
        self.proposal = self._propose(step.logits[b, -1], step.signals[self.signal.name][b, -1])

    def _propose(self, logits: FloatArray, signal: FloatArray) -> Proposal:
        """Choose what to feed; draws from the sequence's generator at most once.

        Args:
            logits: ``[V]``, at the last committed token.
            signal: This sequence's signal there: a scalar (``value``) or ``[V]`` (``q_value``).
        """
        method = self.request.method
        ids = top_candidates(logits, method.candidate_count)
        future = signal if self.signal.kind == "q_value" else None
        if future is not None and method.needs_rewards:
            rewards = _finite(future[ids], self.signal)
            winner = method.choose(method.combine(logits[ids], rewards), self._generator)
            return Proposal(ids[winner : winner + 1], ids, logits[ids], rewards, winner)
        if not method.needs_rewards:
            ids = ids[self._choose_unguided(logits[ids])][None]
            known = None if future is None else future[ids]
            return Proposal(ids, ids, logits[ids], known, 0)
        if method.prunes and self.signal.bounds is not None:
            ids = ids[possible_winners(method, logits[ids], self.signal.bounds)]
        return Proposal(ids, ids, logits[ids], None, None)

    def _choose_unguided(self, logits: FloatArray) -> int:
        method = self.request.method
        return method.choose(method.combine(logits, np.zeros_like(logits)), self._generator)

    def advance(self, step: Step, b: int) -> tuple[TokenEvent, int]:
        """Take the engine's answer to the proposal: the first rows of sequence b.

        Returns:
            The token, and which of the rows is now part of the sequence.

        Raises:
            EngineError: The answer is not finite.
        """
        proposal = self.proposal
        signal = step.signals[self.signal.name][b, : len(proposal.fed)]
        self._forwards += 1
        method = self.request.method
        rewards = proposal.rewards if proposal.rewards is not None else signal
        _finite(rewards, self.signal)
        scores = method.combine(proposal.logits, rewards)
        winner = proposal.winner
        if winner is None:
            winner = method.choose(scores, self._generator)
        row = winner if proposal.winner is None else 0
        token = int(proposal.scored[winner])
        self._tokens.append(token)
        self._rewards.append(float(rewards[winner]))
        text = self._take_text(token)
        if self.finish_reason is None:
            self.proposal = self._propose(step.logits[b, row], signal[row])
        candidates = tuple(
            Candidate(int(t), float(z), float(r), float(s))
            for t, z, r, s in zip(proposal.scored, proposal.logits, rewards, scores, strict=True)
        )
        reward = self._rewards[-1]
        return TokenEvent(self.index, token, text, reward, candidates, self.finish_reason), row

    def _take_text(self, token: int) -> str:
        """Text that the newest token makes certain; sets `finish_reason`."""
        if token in self._eos:
            self.finish_reason = "eos"
            text = self._remaining_text()
        else:
            text, stopped = self._stop.push(self._detokenizer.push(token))
            if stopped:
                self.finish_reason = "stop"
            elif len(self._tokens) >= self._limit:
                self.finish_reason = "length"
                text += self._remaining_text()
        self._texts.append(text)
        return text

    def _remaining_text(self) -> str:
        # The end of an incomplete character cannot complete a stop word, unless U+FFFD is in one.
        text, stopped = self._stop.push(self._detokenizer.finish())
        return text if stopped else text + self._stop.finish()

    def result(self) -> Result:
        """The finished request."""
        prompt = self.request.prompt
        text = prompt if isinstance(prompt, str) else self._tokenizer.decode(self.prompt_ids)
        return Result(
            prompt=text,
            prompt_ids=tuple(self.prompt_ids),
            token_ids=tuple(self._tokens),
            text="".join(self._texts),
            rewards=tuple(self._rewards),
            finish_reason=self.finish_reason or "length",
            forwards=self._forwards,
            seconds=time.perf_counter() - self._started,
        )


def reward_signal(manifest: EngineManifest, name: str | None) -> Signal:
    """The signal that is the reward; None takes the first that scores next tokens.

    Raises:
        EngineError: There is none, or the named one does not score next tokens.
    """
    usable = [s for s in manifest.signals if s.kind in REWARD_KINDS]
    described = ", ".join(f"{s.name} ({s.kind})" for s in manifest.signals)
    if name is None and usable:
        return usable[0]
    if name is not None and manifest.signal(name) in usable:
        return manifest.signal(name)
    raise EngineError(
        f"decoding needs a signal of kind {' or '.join(REWARD_KINDS)}; "
        f"{'asked for ' + name + '; ' if name else ''}the engine's signals: {described}"
    )


def _encode(prompt: object, engine: Engine) -> list[int]:
    manifest = engine.manifest
    ids = engine.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)  # type: ignore[call-overload]
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
            f"the prompt has token id {outside[0]}; the engine's vocabulary is 0 to "
            f"{manifest.vocab_size - 1}"
        )
    if len(ids) >= manifest.max_sequence_length:
        raise RequestError(
            f"the prompt has {len(ids)} tokens; the engine takes at most "
            f"{manifest.max_sequence_length - 1} and one to generate: shorten it, or build the "
            "engine with a larger --max-seq-len"
        )
    return ids


def _finite(rewards: FloatArray, signal: Signal) -> FloatArray:
    if not np.isfinite(rewards).all():
        raise EngineError(
            f"the engine returned a {signal.name} that is NaN or infinite; check it with: "
            "otter-export verify DIR"
        )
    return rewards
