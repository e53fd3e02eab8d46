"""A request inside a scheduler."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

from otter_export.errors import OtterError
from otter_export.runtime.request import Request, Result, TokenEvent
from otter_export.runtime.sequence import SequenceState

#: What a request hears of: its tokens in order, then its result or its error, exactly one.
Event = TokenEvent | Result | OtterError
OnEvent = Callable[[Event], None]

QUEUED, PREFILLING, RUNNING, ENDED = "queued", "prefilling", "running", "ended"


@dataclasses.dataclass(eq=False)
class Ticket:
    """What `Scheduler.submit` gives: names the request, and tells where it is.

    Args:
        number: Counts the scheduler's requests from 0; `TokenEvent.request` is this number.
        request_id: The caller's own name for the request, or None.
        request: The request.
        prompt_tokens: Length of its prompt.

    Attributes:
        state: ``queued``, ``prefilling``, ``running`` or ``ended`` (its last event was sent, or is
            being sent).
        cancelled: Whether it is to be ended; set from any thread.
    """

    number: int
    request_id: str | None
    request: Request
    prompt_tokens: int
    state: str = QUEUED
    cancelled: bool = False

    @property
    def ended(self) -> bool:
        """Whether nothing more will come than the event that is being sent."""
        return self.state == ENDED


@dataclasses.dataclass(eq=False)
class Job:
    """The scheduler's side of a ticket.

    Args:
        ticket: The ticket.
        sequence: The sequence that it runs.
        on_event: Hears of it.
        deadline: When it expires, by `time.monotonic`, or None.

    Attributes:
        submitted: When it was submitted, by `time.monotonic`.
        last: When its last token came, or `submitted`.
        tokens: Tokens that were generated so far.
        deaf: Whether ``on_event`` raised, so that nothing more is sent to it.
    """

    ticket: Ticket
    sequence: SequenceState
    on_event: OnEvent
    deadline: float | None
    submitted: float = dataclasses.field(default_factory=lambda: time.monotonic())
    last: float = 0.0
    tokens: int = 0
    deaf: bool = False

    def __post_init__(self) -> None:
        self.last = self.submitted
