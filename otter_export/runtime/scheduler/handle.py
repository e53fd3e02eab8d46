"""A request as its client sees it."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable

from otter_export.errors import CancelledError, DeadlineError, OtterError
from otter_export.runtime.request import Request, Result, TokenEvent
from otter_export.runtime.scheduler.sequence import Sequence, State

#: What a request hears of: its tokens in order, then its result or its error, exactly one.
Event = TokenEvent | Result | OtterError
OnEvent = Callable[[Event], None]

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(eq=False)
class RequestHandle:
    """What `Scheduler.submit` gives: names the request, and tells where it is.

    Args:
        sequence: What is generated for it.
        on_event: Hears of it.
        deadline_seconds: It ends with an error if it takes longer; None is no deadline.
        request_id: The caller's own name for the request, or None.

    Attributes:
        cancelled: Whether it is to be ended; set from any thread.
        submitted: When it was submitted, by `time.monotonic`.
        last_token: When its last token came, or `submitted`.
        tokens: Tokens that were told of.
    """

    sequence: Sequence
    on_event: OnEvent | None
    deadline_seconds: float | None = None
    request_id: str | None = None
    cancelled: bool = False
    submitted: float = dataclasses.field(default_factory=lambda: time.monotonic())
    last_token: float = dataclasses.field(init=False)
    tokens: int = 0

    def __post_init__(self) -> None:
        self.last_token = self.submitted

    @property
    def number(self) -> int:
        """Counts the scheduler's requests from 0; `TokenEvent.request` is this number."""
        return self.sequence.number

    @property
    def request(self) -> Request:
        """The request."""
        return self.sequence.request

    @property
    def prompt_tokens(self) -> int:
        """Length of its prompt."""
        return len(self.sequence.prompt_ids)

    @property
    def state(self) -> State:
        """Where it is: ``queued``, ``prefilling``, ``running`` or ``ended``."""
        return self.sequence.state

    @property
    def ended(self) -> bool:
        """Whether nothing more will come than the event that is being sent."""
        return self.state is State.ENDED

    def overdue(self, now: float) -> OtterError | None:
        """Why it has to end now, by `time.monotonic`: cancelled or expired; None to go on."""
        if self.cancelled:
            return CancelledError("the request was cancelled")
        if self.deadline_seconds is None or now < self.submitted + self.deadline_seconds:
            return None
        seconds, tokens = round(self.deadline_seconds, 3), len(self.sequence.token_ids)
        return DeadlineError(f"the request's {seconds:g} seconds were over after {tokens} tokens")

    def send(self, event: Event) -> None:
        """Call ``on_event``; if it raises, the request is cancelled and hears nothing more."""
        if self.on_event is None:
            return
        try:
            self.on_event(event)
        # Whatever a callback does wrong, the others must go on.
        except Exception:
            self.on_event, self.cancelled = None, True
            _LOG.exception("request %s: on_event failed", self.request_id)
