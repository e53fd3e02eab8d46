"""What a scheduler tells about its work: a snapshot of counts, and hooks for metrics and logs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from otter_export.errors import OtterError
from otter_export.runtime.request import Result, TokenEvent

if TYPE_CHECKING:
    from otter_export.runtime.ticket import Ticket


@dataclasses.dataclass(frozen=True)
class Stats:
    """A `Scheduler` at one moment.

    Args:
        queued: Requests that wait for a place now.
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

    def submitted(self, ticket: Ticket) -> None:
        """A request was accepted and waits."""

    def rejected(self, request_id: str | None, error: OtterError) -> None:
        """A request was refused; ``error`` is raised next."""

    def admitted(self, ticket: Ticket, seconds: float) -> None:
        """A request got a place, ``seconds`` after it was submitted."""

    def token(self, ticket: Ticket, event: TokenEvent, seconds: float, first: bool) -> None:
        """A token was generated.

        Args:
            ticket: The request.
            event: The token with its reward and candidates.
            seconds: Since the token before, or since the request was submitted if it is the first.
            first: Whether it is the request's first token.
        """

    def ended(self, ticket: Ticket, outcome: Result | OtterError, seconds: float) -> None:
        """A request got its result, or its error, ``seconds`` after it was submitted."""

    def step(self, stats: Stats, seconds: float) -> None:
        """A round of the scheduler ended; it took ``seconds``."""
