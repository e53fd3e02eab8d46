"""One sequence that is being generated: what it feeds, and what it makes of the answer."""

from __future__ import annotations

import copy
import enum
import logging
import time
from collections import abc
from collections.abc import Iterable, Mapping
from typing import Self

import numpy as np

from otter_export.errors import EngineError, OtterError, RequestError
from otter_export.quoting import quoted
from otter_export.runtime.chat import Chat
from otter_export.runtime.detokenizer import TextStream
from otter_export.runtime.drafts import make_drafter
from otter_export.runtime.drafts.drafter import MOST_ROWS
from otter_export.runtime.drafts.tree import ROOT, TokenTree
from otter_export.runtime.engine import Cache, Engine, FloatArray, Step
from otter_export.runtime.prefill import Fed
from otter_export.runtime.prompt_ids import prompt_ids
from otter_export.runtime.request import Candidate, PromptRewards, Request, Result, TokenEvent
from otter_export.runtime.scheduler.chooser import Chooser, Proposal
from otter_export.runtime.scheduler.prompt_scorer import PromptScorer

_LOG = logging.getLogger(__name__)


class State(enum.StrEnum):
    """Where a request is; ``ended``: its last event was sent, or is being sent."""

    QUEUED = "queued"
    PREFILLING = "prefilling"
    RUNNING = "running"
    ENDED = "ended"


class Sequence:
    """What is generated for one request.

    Once its prompt was fed, every step is `propose`, a forward pass over `fed`, and `advance`,
    which takes a token, and further ones where drafts were right, and proposes again.

    Args:
        number: Of the request; its events have it.
        request: The request.
        engine: Where it will run; gives tokenizer and limits.

    Attributes:
        state: Where the request is.
        prefilled: Tokens of the prompt that were fed.
        cache: The cache that holds its rows, once its prompt was begun and until it ends.
        cache_index: Its place among the cache's sequences.
        proposal: The candidates for the next token, once its prompt was fed.
        fed: What is fed in the next step: the first candidates, and drafts behind the best.
        token_ids: What was generated.
        drafted: Drafts that were fed.
        accepted: Those of them that were right.
        finish_reason: ``eos``, ``stop`` or ``length`` once it is finished.
        error: Why it failed, or None.

    Raises:
        RequestError: The prompt is empty or too long, or method or drafts do not fit the engine.
        EngineError: There is no such signal.
    """

    def __init__(self, number: int, request: Request, engine: Engine) -> None:
        if not isinstance(request, Request):
            raise RequestError(f"a request must be a Request, got {quoted(request)}")
        manifest = engine.manifest
        self.number = number
        self.request = request
        self.prompt_ids = prompt_ids(request.prompt, engine, generated=min(request.max_tokens, 1))
        self._chooser = Chooser(request, manifest, len(self.prompt_ids))
        count = request.method.candidate_count
        if count is not None and count > manifest.vocab_size:
            raise RequestError(
                f"top_k must be an integer from 1 to the vocabulary size {manifest.vocab_size}, "
                f"got {count}"
            )
        # The token at which the engine's limit ends the sequence, if nothing else does before.
        self._limit = min(request.max_tokens, manifest.max_sequence_length - len(self.prompt_ids))
        self._eos = frozenset(manifest.eos_token_ids)
        self._drafter = make_drafter(request.drafts, engine)
        self._even_steps = engine.even_steps
        # A wider step would run in parts on an engine that was built for fewer rows.
        self._most_rows = min(manifest.built_for.limits.max_candidates or MOST_ROWS, MOST_ROWS)
        self._history = list(self.prompt_ids)
        self._tokenizer = engine.tokenizer
        self._text = TextStream(self._tokenizer, self.prompt_ids, request.stop)
        self._scorer: PromptScorer | None = None
        if request.rewards_from is not None:
            signals = self._chooser.signals
            self._scorer = PromptScorer(signals, self.prompt_ids, request.rewards_from)
        self._winners: list[Candidate] = []
        self._texts: list[str] = []
        self._forwards = 0
        self._started = 0.0
        self.state = State.QUEUED
        self.prefilled = 0
        self.cache: Cache | None = None
        self.cache_index = 0
        self.proposal: Proposal
        self.fed: TokenTree
        self.token_ids: list[int] = []
        self.drafted = 0
        self.accepted = 0
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
        known = self.proposal.winner is not None or self.request.method.candidate_count == 1
        return known and len(self.fed) == 1

    def start(self, cache: Cache, index: int) -> None:
        """Its prompt is about to be fed into a cache: time starts."""
        self.cache, self.cache_index = cache, index
        self._started = time.perf_counter()

    def fork(self, generator: np.random.Generator | None = None) -> Self:
        """One that goes on from here by itself; its rows are those of this one, in the same cache.

        Args:
            generator: Its own, for what `propose` draws next; None: the two share this one's, and
                only one of them may go on.
        """
        other = copy.copy(self)
        for name in ("token_ids", "_history", "_winners", "_texts"):
            setattr(other, name, list(getattr(self, name)))
        other._text = copy.deepcopy(self._text, {id(self._tokenizer): self._tokenizer})
        if generator is not None:
            other._chooser = self._chooser.drawing_from(generator)
        return other

    @property
    def first_row(self) -> int | None:
        """The first token whose row is wanted, counted from those that were fed; None: the last."""
        if self._scorer is None:
            return None
        return max(self._scorer.first_row - self.prefilled, 0)

    def take_prompt(self, fed: Fed, b: int) -> None:
        """Take the next tokens of the prompt, which were fed; behind the last one propose.

        Args:
            fed: What was fed; it has the rows from `first_row` on.
            b: Index of this sequence in it.

        Raises:
            EngineError: The answer is not finite.
        """
        size = int(fed.lengths[b])
        if self._scorer is not None and (first := self.first_row or 0) < size:
            self._scorer.take(self.prefilled + first, fed.signals(b, first))
        self.prefilled += size
        if self.prefilled < len(self.prompt_ids):
            return
        if self.request.max_tokens:
            self.propose(fed.last, b, row=0)
        else:
            self.finish_reason = "length"

    def propose(self, step: Step, b: int, row: int) -> None:
        """Choose what to feed next.

        Args:
            step: The engine's answer; its row ``[b, row]`` is that of the last token.
            b: Index of this sequence in the step.
            row: Index of the row.

        Raises:
            EngineError: The answer is not finite.
        """
        self._choose(step, b, row)
        self._plan(step, b, row)

    def advance(self, step: Step, b: int) -> tuple[list[TokenEvent], list[int]]:
        """Take the engine's answer to what was fed: the first rows of sequence b.

        The first token is one that was proposed. From its row the next one is chosen as it would be
        in a step of its own; if that was drafted, its row is here, and so on. An answer that is not
        finite sets `error`, after the tokens before it.

        Returns:
            The tokens, and which of the rows are now part of the sequence. There may be no token:
            candidates that were not fed can win after all, and are proposed too.
        """
        self._forwards += 1
        self.drafted += len(self.fed) - len(self.fed.children(ROOT))
        events: list[TokenEvent] = []
        rows: list[int] = []
        try:
            while self.finish_reason is None:
                row = rows[-1] if rows else ROOT
                children = self.fed.children(row)
                feed = self.proposal.feed.tolist()
                if not children.keys() >= set(feed):
                    break  # what is proposed was not drafted
                places = [children[token] for token in feed]
                if chosen := self._settle(step, b, places):
                    events.append(chosen[0])
                    rows.append(chosen[1])
            if self.finish_reason is None:
                self._plan(step, b, rows[-1] if rows else None)
        except EngineError as error:
            self.error = error
        self.accepted += max(len(events) - 1, 0)
        return events, rows

    def _settle(self, step: Step, b: int, places: list[int]) -> tuple[TokenEvent, int] | None:
        """The winner of the proposal, and its row, from which the next one is chosen.

        Args:
            step: The engine's answer.
            b: Index of this sequence in the step.
            places: The rows of what is proposed.

        Returns:
            None if there is a wider proposal instead.
        """
        proposal, first = self.proposal, places[0]
        # Mostly neighbours: a view, where a list of rows would make a copy.
        near = places == list(range(first, first + len(places)))
        at = slice(first, first + len(places)) if near else places
        answer = {name: values[b, at] for name, values in step.signals.items()}
        choice = self._chooser.settle(proposal, answer)
        if isinstance(choice, Proposal):
            self.proposal = choice
            return None
        winner, row = choice.candidates[choice.winner], places[choice.row]
        self.token_ids.append(winner.token_id)
        self._history.append(winner.token_id)
        self._winners.append(winner)
        text = self._take_text(winner.token_id)
        if self.finish_reason is None:
            self._choose(step, b, row)
        event = TokenEvent(
            request=self.number,
            token_id=winner.token_id,
            text=text,
            reward=winner.reward,
            candidates=choice.candidates,
            finish_reason=self.finish_reason,
            gated=proposal.gated,
            signals=winner.signals,
            prompt_rewards=self._prompt_rewards() if len(self.token_ids) == 1 else None,
        )
        return event, row

    def _choose(self, step: Step, b: int, row: int) -> None:
        """Propose the token behind a row; draws from the generator at most once."""
        signals = _signals(step, b, row)
        self.proposal = self._chooser.propose(step.logits[b, row], signals, self._history)

    def _plan(self, step: Step, b: int, row: int | None) -> None:
        """Decide what to feed: the proposal, and drafts where there is room for them.

        Args:
            step: The engine's answer.
            b: Index of this sequence in the step.
            row: That from which the proposal was made; None: it is not in this step.
        """
        feed = self.proposal.feed.tolist()
        self.fed = TokenTree.siblings(feed)
        most = min(self._room(len(feed)), self._limit - len(self.token_ids) - 1)
        if self._drafter is None or row is None or most < 1:
            return
        draft = self._drafter.draft(self._history, feed[0], _signals(step, b, row), most)
        self.fed = self.fed.graft(draft.tree.first(most), parent=0)

    def _room(self, fed: int) -> int:
        """Most drafts beside so many tokens.

        Drafts behind one of several candidates can help only where it wins and one candidate is
        left after it. So they take no more than the place that the step has for nothing.
        """
        if fed == 1:
            return self._most_rows - 1
        return fed % 2 if self._even_steps else 0

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
        if not isinstance(prompt, str):
            # Without its special tokens nobody sees who says what in a chat.
            shown = not isinstance(prompt, Chat)
            prompt = self._tokenizer.decode(self.prompt_ids, skip_special_tokens=shown)
        return Result(
            request=self.number,
            prompt=prompt,
            prompt_ids=tuple(self.prompt_ids),
            token_ids=tuple(self.token_ids),
            text="".join(self._texts),
            rewards=tuple(w.reward for w in self._winners if w.reward is not None),
            finish_reason=self.finish_reason or "length",
            forwards=self._forwards,
            seconds=time.perf_counter() - self._started,
            signals=_by_name([winner.signals for winner in self._winners]),
            drafted=None if self._drafter is None else self.drafted,
            accepted=None if self._drafter is None else self.accepted,
            prompt_rewards=self._prompt_rewards(),
        )

    def _prompt_rewards(self) -> PromptRewards | None:
        return None if self._scorer is None else self._scorer.rewards()

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


def _signals(step: Step, b: int, row: int) -> dict[str, FloatArray]:
    """What the engine gives for a row, by name."""
    return {name: values[b, row] for name, values in step.signals.items()}


def _by_name(values: abc.Sequence[Mapping[str, float]]) -> dict[str, tuple[float, ...]]:
    """Values of each signal, one a token."""
    return {name: tuple(v[name] for v in values) for name in (values[0] if values else ())}
