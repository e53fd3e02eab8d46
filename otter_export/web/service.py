"""The scheduler for programs on asyncio: calls go in, their events come out as they happen."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol, cast

from otter_export.errors import OtterError
from otter_export.runtime.engine import Engine
from otter_export.runtime.request import Request, Result, TokenEvent
from otter_export.runtime.scheduler import Event, OnEvent, Scheduler, Stats
from otter_export.serving.metrics import Metrics
from otter_export.serving.request_log import RequestLog
from otter_export.serving.settings import Settings
from otter_export.web.body import Call
from otter_export.web.upstream import Front


class Scheduling(Protocol):
    """A `Scheduler`, or who passes requests on to another (`Upstream`)."""

    @property
    def stats(self) -> Stats:
        """Counts at this moment."""
        ...

    def start(self) -> None:
        """Work from now on."""
        ...

    def close(self, *, drain: bool = True) -> None:
        """Take no more; without a drain, end what is left."""
        ...

    def submit(
        self,
        request: Request,
        *,
        on_event: OnEvent,
        deadline_seconds: float | None = None,
        request_id: str | None = None,
    ) -> Any:
        """Accept a request; returns what `cancel` takes."""
        ...

    def cancel(self, handle: Any) -> None:
        """End a request."""
        ...


class EventStream:
    """The events of one call, on the loop that made it.

    Args:
        scheduler: Whose call it is.
    """

    def __init__(self, scheduler: Scheduling) -> None:
        self._scheduler = scheduler
        self._loop = asyncio.get_running_loop()
        # As long as a request may have tokens; whoever does not read them takes no more room.
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._handle: Any = None
        self._cancelled = False

    def submit(self, call: Call, request_id: str) -> None:
        """Hand the call over; from any thread.

        Raises:
            OtterError: It is refused.
        """
        handle = self._scheduler.submit(
            call.served.request,
            on_event=self._put,
            deadline_seconds=call.served.deadline_seconds,
            request_id=request_id,
        )
        self._handle = handle
        if self._cancelled:  # meanwhile
            self._scheduler.cancel(handle)

    def cancel(self) -> None:
        """End the call, if it has not ended; nobody waits for its events."""
        self._cancelled = True
        if self._handle is not None:
            self._scheduler.cancel(self._handle)

    async def events(self) -> AsyncIterator[TokenEvent | Result]:
        """Its tokens, and its result.

        Raises:
            OtterError: It ended with an error.
        """
        while True:
            event = await self._events.get()
            if isinstance(event, OtterError):
                raise event
            yield event
            if isinstance(event, Result):
                return

    def _put(self, event: Event) -> None:
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class Service:
    """An engine that answers calls.

    Args:
        engine: The engine; nothing else may use it.
        settings: Limits and defaults, those that the engine can keep.
        scheduler: Does the work; None: one of its own on the engine, which is a whole one then.

    Attributes:
        engine: The engine.
        settings: The settings.
        metrics: Of the scheduler.
        log: Of requests.
        scheduler: It works from `start` on.
    """

    def __init__(
        self, engine: Front, settings: Settings, scheduler: Scheduling | None = None
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.metrics = Metrics()
        self.log = RequestLog({}, requests=settings.log_requests, prompts=settings.log_prompts)
        self._observers = (self.metrics, self.log)
        self.scheduler: Scheduling = (
            Scheduler(cast(Engine, engine), settings.limits(), self._observers)
            if scheduler is None
            else scheduler
        )

    def start(self) -> None:
        """Take calls from now on."""
        self.engine.tokenizer  # noqa: B018  it is read now, not by the first call
        self.scheduler.start()

    def close(self) -> None:
        """End what is left."""
        self.scheduler.close(drain=False)

    async def submit(self, read: Callable[[], Call]) -> tuple[Call, EventStream]:
        """Read a call and hand it over.

        Long prompts take their time, so this happens on a thread: the loop goes on.

        Args:
            read: Makes the call; may raise what it wants of `OtterError`.

        Raises:
            OtterError: The call is refused.
        """
        stream, request_id = EventStream(self.scheduler), uuid.uuid4().hex[:12]

        def work() -> Call:
            try:
                call = read()
            except OtterError as error:
                for observer in self._observers:
                    observer.rejected(request_id, error)
                raise
            stream.submit(call, request_id)
            return call

        try:
            return await asyncio.to_thread(work), stream
        except asyncio.CancelledError:
            # The thread goes on; what it submits is ended at once.
            stream.cancel()
            raise
