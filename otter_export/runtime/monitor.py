"""Counts a scheduler's work, and passes it on to its observer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from otter_export.errors import CancelledError, DeadlineError, OtterError
from otter_export.runtime.observer import Observer, Stats
from otter_export.runtime.request import Result, TokenEvent
from otter_export.runtime.ticket import Job

_LOG = logging.getLogger(__name__)


class Monitor:
    """Keeps the totals of `Stats`.

    Args:
        observer: Hears of everything; None is nobody.
    """

    def __init__(self, observer: Observer | None) -> None:
        self._observer = Observer() if observer is None else observer
        self._totals: dict[str, Any] = {}

    def stats(self, **now: int) -> Stats:
        """The totals, with what is going on now."""
        return Stats(**self._totals, **now)

    def submitted(self, job: Job) -> None:
        """A request was accepted."""
        self._add("submitted")
        self._tell(self._observer.submitted, job.ticket)

    def rejected(self, request_id: str | None, error: OtterError) -> None:
        """A request was refused."""
        self._add("rejected")
        self._tell(self._observer.rejected, request_id, error)

    def admitted(self, job: Job) -> None:
        """A request got a place."""
        self._tell(self._observer.admitted, job.ticket, time.monotonic() - job.submitted)

    def forward(self, prompt_tokens: int = 0) -> None:
        """A forward pass was run, over so many prompt tokens if it was one over prompts."""
        self._add("forwards")
        self._add("prompt_tokens", prompt_tokens)

    def token(self, job: Job, event: TokenEvent) -> None:
        """A token was generated."""
        now = time.monotonic()
        seconds, job.last = now - job.last, now
        first = job.tokens == 0
        job.tokens += 1
        self._add("tokens")
        self._add("candidates", len(event.candidates))
        self._add("reward_sum", event.reward)
        self._tell(self._observer.token, job.ticket, event, seconds, first)

    def ended(self, job: Job, outcome: Result | OtterError) -> None:
        """A request got its last event."""
        self._add(_total_of(outcome))
        self._tell(self._observer.ended, job.ticket, outcome, time.monotonic() - job.submitted)

    def step(self, stats: Stats, seconds: float) -> None:
        """A round ended."""
        self._tell(self._observer.step, stats, seconds)

    def _add(self, name: str, amount: float = 1) -> None:
        self._totals[name] = self._totals.get(name, 0) + amount

    def _tell(self, hook: Callable[..., None], *arguments: object) -> None:
        try:
            hook(*arguments)
        # Whatever an observer does wrong, requests must go on.
        except Exception:
            _LOG.exception("the observer's %s failed", getattr(hook, "__name__", hook))


def _total_of(outcome: Result | OtterError) -> str:
    if isinstance(outcome, Result):
        return "completed"
    if isinstance(outcome, CancelledError):
        return "cancelled"
    return "expired" if isinstance(outcome, DeadlineError) else "failed"
