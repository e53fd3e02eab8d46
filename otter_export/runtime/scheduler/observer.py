"""Observing a scheduler: a snapshot of counts, and hooks for metrics and logs."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from otter_export.errors import CancelledError, DeadlineError, OtterError
from otter_export.runtime.request import Result, TokenEvent
from otter_export.runtime.scheduler.handle import RequestHandle

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Stats:
    """A `Scheduler` at one moment.

    Args:
        queued: Requests that wait for room now.
        prefilling: Requests whose prompt is being fed now.
        running: Requests in the decoding batch now.
        submitted: Requests that were accepted so far, like all of the following.
        completed: Requests that got their result.
        cancelled: Requests that were cancelled.
        expired: Requests whose deadline passed.
        failed: Requests that ended with another error.
        rejected: Requests that were refused when they were submitted; not among ``submitted``.
        prompt_tokens: Prompt tokens fed.
        tokens: Tokens generated.
        forwards: Forward passes, of prompts and of decoding steps.
        candidates: Candidates scored.
        gated: Tokens that were chosen without rewards because a gate was closed.
        drafted: Drafts that were fed for requests that ended.
        accepted: Those of them that were right.
        reward_sum: Sum of the rewards of the generated tokens.
    """

    queued: int = 0
    prefilling: int = 0
    running: int = 0
    submitted: int = 0
    completed: int = 0
    cancelled: int = 0
    expired: int = 0
    failed: int = 0
    rejected: int = 0
    prompt_tokens: int = 0
    tokens: int = 0
    forwards: int = 0
    candidates: int = 0
    gated: int = 0
    drafted: int = 0
    accepted: int = 0
    reward_sum: float = 0.0

    @property
    def mean_reward(self) -> float:
        """Mean reward of the generated tokens; 0 before the first."""
        return self.reward_sum / self.tokens if self.tokens else 0.0


class Observer:
    """Hooks of a `Scheduler`; override those that you want.

    They are called on the scheduler's thread, except `rejected` and `submitted`, which are called
    on the thread that submits. Times are seconds of a monotonic clock. An exception in a hook is
    logged, and nothing else.
    """

    def submitted(self, handle: RequestHandle) -> None:
        """A request was accepted and waits."""

    def rejected(self, request_id: str | None, error: OtterError) -> None:
        """A request was refused; ``error`` is raised next."""

    def admitted(self, handle: RequestHandle, seconds: float) -> None:
        """A request got a place, ``seconds`` after it was submitted."""

    def token(self, handle: RequestHandle, event: TokenEvent, seconds: float, first: bool) -> None:
        """A token was generated.

        Args:
            handle: The request.
            event: The token with its reward and candidates.
            seconds: Since the token before, or since the request was submitted if it is the first.
            first: Whether it is the request's first token.
        """

    def ended(self, handle: RequestHandle, outcome: Result | OtterError, seconds: float) -> None:
        """A request got its result, or its error, ``seconds`` after it was submitted."""

    def step(self, stats: Stats, seconds: float) -> None:
        """A round of the scheduler ended; it took ``seconds``."""


class Monitor:
    """Keeps the totals of `Stats`, and passes on what happens.

    Args:
        observers: Hear of everything, each of them.
    """

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = tuple(observers)
        self._totals: dict[str, Any] = {}

    def stats(self, **now: int) -> Stats:
        """The totals, with what is going on now."""
        return Stats(**self._totals, **now)

    def submitted(self, handle: RequestHandle) -> None:
        """A request was accepted."""
        self._add("submitted")
        self._tell("submitted", handle)

    def rejected(self, request_id: str | None, error: OtterError) -> None:
        """A request was refused."""
        self._add("rejected")
        self._tell("rejected", request_id, error)

    def admitted(self, handle: RequestHandle) -> None:
        """A request got a place."""
        self._tell("admitted", handle, time.monotonic() - handle.submitted)

    def forward(self, passes: int = 1, prompt_tokens: int = 0) -> None:
        """Forward passes were run, over so many prompt tokens if they were over prompts."""
        self._add("forwards", passes)
        self._add("prompt_tokens", prompt_tokens)

    def token(self, handle: RequestHandle, event: TokenEvent) -> None:
        """A token was generated."""
        now = time.monotonic()
        seconds, handle.last_token = now - handle.last_token, now
        handle.tokens += 1
        self._add("tokens")
        self._add("candidates", len(event.candidates))
        self._add("gated", event.gated)
        self._add("reward_sum", event.reward or 0.0)
        self._tell("token", handle, event, seconds, handle.tokens == 1)

    def ended(self, handle: RequestHandle, outcome: Result | OtterError) -> None:
        """A request got its last event."""
        self._add(outcome_name(outcome))
        self._add("drafted", handle.sequence.drafted)
        self._add("accepted", handle.sequence.accepted)
        self._tell("ended", handle, outcome, time.monotonic() - handle.submitted)

    def step(self, stats: Callable[[], Stats], seconds: float) -> None:
        """A round ended; its counts are made if somebody wants them."""
        if self._observers:
            self._tell("step", stats(), seconds)

    def _add(self, name: str, amount: float = 1) -> None:
        self._totals[name] = self._totals.get(name, 0) + amount

    def _tell(self, hook: str, *arguments: object) -> None:
        for observer in self._observers:
            try:
                getattr(observer, hook)(*arguments)
            # Whatever an observer does wrong, requests must go on.
            except Exception:
                _LOG.exception("the observer's %s failed", hook)


def outcome_name(outcome: Result | OtterError) -> str:
    """``completed``, ``cancelled``, ``expired`` or ``failed``."""
    if isinstance(outcome, Result):
        return "completed"
    if isinstance(outcome, CancelledError):
        return "cancelled"
    return "expired" if isinstance(outcome, DeadlineError) else "failed"
