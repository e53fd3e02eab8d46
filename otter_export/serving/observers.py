"""Several observers of one scheduler."""

from __future__ import annotations

from otter_export.errors import OtterError
from otter_export.runtime.observer import Observer
from otter_export.runtime.request import Result, TokenEvent
from otter_export.runtime.ticket import Ticket


class Observers(Observer):
    """Passes what the scheduler tells on to each of them.

    Args:
        observers: Who wants to hear it.
    """

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def rejected(self, request_id: str | None, error: OtterError) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.rejected(request_id, error)

    def token(self, ticket: Ticket, event: TokenEvent, seconds: float, first: bool) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.token(ticket, event, seconds, first)

    def ended(self, ticket: Ticket, outcome: Result | OtterError, seconds: float) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.ended(ticket, outcome, seconds)
