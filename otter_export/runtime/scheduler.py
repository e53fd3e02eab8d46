"""Continuous batching: requests join and leave the running batch between steps."""

from __future__ import annotations

from otter_export.runtime.engine import Engine
from otter_export.runtime.limits import Limits
from otter_export.runtime.observer import Observer, Stats
from otter_export.runtime.request import Request
from otter_export.runtime.ticket import OnEvent, Ticket


class Scheduler:
    """Decodes many requests together, each with its own method, options and seed.

    Use it in one of two ways: call `step` until it returns False, or `start` a thread that does.
    `submit`, `cancel` and `stats` may be called from any thread, also from inside ``on_event``.

    Args:
        engine: The engine; nothing else may use it while the scheduler works.
        limits: What is accepted, and how much at a time.
        observer: Hears of everything that happens.
    """

    def __init__(
        self, engine: Engine, limits: Limits | None = None, observer: Observer | None = None
    ) -> None:
        raise NotImplementedError

    def submit(
        self,
        request: Request,
        *,
        on_event: OnEvent,
        deadline_seconds: float | None = None,
        request_id: str | None = None,
    ) -> Ticket:
        """Accept a request; it waits for its place, first come, first served.

        Args:
            request: The request.
            on_event: Called on the scheduler's thread with each `TokenEvent`, and at the end with
                one `Result` or one `OtterError`. It must return quickly; if it raises, the request
                is ended and the exception is logged.
            deadline_seconds: Above 0: the request ends with `DeadlineError` if it takes longer,
                waiting included.
            request_id: Any name, for logs and metrics.

        Returns:
            Its ticket, for `cancel`.

        Raises:
            QueueFullError: Too many requests wait already.
            RequestError: The request is not valid for this engine or exceeds a limit, or the
                scheduler is closed.
            EngineError: The engine has no such signal.
        """
        raise NotImplementedError

    def cancel(self, ticket: Ticket) -> None:
        """End a request before the next step, wherever it is; its last event is `CancelledError`.

        A request that has ended already is left alone.
        """
        raise NotImplementedError

    def step(self) -> bool:
        """One round: end the cancelled and expired, admit, feed prompts, generate a token each.

        Not to be called beside `start`.

        Returns:
            Whether work remains.
        """
        raise NotImplementedError

    @property
    def stats(self) -> Stats:
        """Counts at this moment."""
        raise NotImplementedError

    def start(self) -> None:
        """Work on a thread of its own until `close`."""
        raise NotImplementedError

    def close(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Refuse new requests, finish or cancel the others, and stop the thread.

        Args:
            drain: Finish what was accepted; otherwise all of it ends with `CancelledError`.
            timeout: Seconds after which even a drain cancels what is left.
        """
        raise NotImplementedError
