"""Sends the responses of requests, on a thread of its own.

A response is a message to the server and back, about 0.2 ms. Sent by the scheduler's thread it
would delay the next step of everybody; here it overlaps with the engine's work.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Callable
from typing import Protocol

from otter_export.errors import OtterError
from otter_export.runtime.request import Result, TokenEvent
from otter_export.runtime.ticket import Event, Ticket
from otter_export.serving.parsing import ServedRequest
from otter_export.serving.replies import Outputs, result_outputs, token_outputs


class Channel(Protocol):
    """The way back to one client."""

    def send(self, outputs: Outputs, *, final: bool) -> None:
        """Send a response; ``final`` ends the request."""
        ...

    def fail(self, error: OtterError) -> None:
        """End the request with an error."""
        ...

    def is_cancelled(self) -> bool:
        """Whether the client is gone, as far as the server knows."""
        ...


@dataclasses.dataclass(eq=False)
class Live:
    """A request in work.

    Args:
        served: What was asked for.
        channel: The way back.
        max_candidates: Most candidates per token to return; 0 returns none.
    """

    served: ServedRequest
    channel: Channel
    max_candidates: int
    ticket: Ticket | None = None
    started: bool = False
    events: list[TokenEvent] = dataclasses.field(default_factory=list)


class Responder:
    """Takes events from the scheduler's thread and sends them, in order.

    Args:
        on_failure: Called with a request whose response could not be sent, and why.
    """

    def __init__(self, on_failure: Callable[[Live, Exception], None]) -> None:
        self._on_failure = on_failure
        self._queue: queue.SimpleQueue[tuple[Live, Event] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="responder", daemon=True)
        self._thread.start()

    def put(self, live: Live, event: Event) -> None:
        """Take an event; returns at once."""
        live.started = True
        self._queue.put((live, event))

    def close(self) -> None:
        """Send everything that is left, then stop."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            live, event = item
            try:
                respond(live, event)
            # Whatever the server raises for one request must not end the others'.
            except Exception as error:
                self._on_failure(live, error)


def respond(live: Live, event: Event) -> None:
    """Send what an event means for the client.

    A stream gets a response per token, the last of which is final; others get one at the end.
    """
    if isinstance(event, TokenEvent):
        if live.served.stream:
            outputs = token_outputs(event, live.max_candidates)
            live.channel.send(outputs, final=event.finish_reason is not None)
        elif live.max_candidates:
            live.events.append(event)
    elif isinstance(event, Result):
        if not live.served.stream:
            live.channel.send(result_outputs(event, live.events, live.max_candidates), final=True)
    else:
        live.channel.fail(event)
