"""Several observers of one scheduler."""

from __future__ import annotations

from otter_export.errors import OtterError
from otter_export.runtime.observer import Observer, Stats
from otter_export.runtime.request import Result, TokenEvent
from otter_export.runtime.ticket import Ticket


class Observers(Observer):
    """Passes what the scheduler tells on to each of them.

    Args:
        observers: Who wants to hear it.
    """

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def submitted(self, ticket: Ticket) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.submitted(ticket)

    def rejected(self, request_id: str | None, error: OtterError) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.rejected(request_id, error)

    def admitted(self, ticket: Ticket, seconds: float) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.admitted(ticket, seconds)

    def token(self, ticket: Ticket, event: TokenEvent, seconds: float, first: bool) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.token(ticket, event, seconds, first)

    def ended(self, ticket: Ticket, outcome: Result | OtterError, seconds: float) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.ended(ticket, outcome, seconds)

    def step(self, stats: Stats, seconds: float) -> None:
        """See `Observer`."""
        for observer in self._observers:
            observer.step(stats, seconds)
