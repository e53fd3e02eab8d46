"""A request inside a scheduler."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from otter_export.errors import OtterError
from otter_export.runtime.request import Request, Result, TokenEvent

#: What a request hears of: its tokens in order, then its result or its error, exactly one.
Event = TokenEvent | Result | OtterError
OnEvent = Callable[[Event], None]


@dataclasses.dataclass(eq=False)
class Ticket:
    """What `Scheduler.submit` gives: names the request, and tells where it is.

    Args:
        number: Counts the scheduler's requests from 0; `TokenEvent.request` is this number.
        request_id: The caller's own name for the request, or None.
        request: The request.
        prompt_tokens: Length of its prompt.

    Attributes:
        state: ``queued``, ``prefilling``, ``running`` or ``ended``.
    """

    number: int
    request_id: str | None
    request: Request
    prompt_tokens: int
    state: str = "queued"

    @property
    def ended(self) -> bool:
        """Whether the last event was sent."""
        return self.state == "ended"
