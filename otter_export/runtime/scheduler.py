"""Continuous batching: requests join and leave the running batch between steps."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from types import TracebackType

from otter_export.errors import EngineError, OtterError, RequestError
from otter_export.runtime.engine import Engine
from otter_export.runtime.jobs import Jobs
from otter_export.runtime.limits import Limits
from otter_export.runtime.methods.base import check_number
from otter_export.runtime.monitor import Monitor
from otter_export.runtime.observer import Observer, Stats
from otter_export.runtime.places import Outcomes, Places
from otter_export.runtime.request import Request, Result
from otter_export.runtime.sequence import SequenceState
from otter_export.runtime.ticket import RUNNING, Event, Job, OnEvent, Ticket

_LOG = logging.getLogger(__name__)


class Scheduler:
    """Decodes many requests together, each with its own method, options and seed.

    Use it in one of two ways: call `step` until it returns False, or `start` a thread that does
    (``with Scheduler(engine) as scheduler`` starts and closes). `submit`, `cancel` and `stats` may
    be used from any thread, also from inside ``on_event``.

    Args:
        engine: The engine; nothing else may use it while the scheduler works.
        limits: What is accepted, and how much at a time; where the engine was built for less, that
            counts.
        observer: Hears of everything that happens.

    Attributes:
        limits: The limits that count.
    """

    def __init__(
        self, engine: Engine, limits: Limits | None = None, observer: Observer | None = None
    ) -> None:
        self._engine = engine
        self.limits = (limits or Limits()).within(engine.manifest)
        self._monitor = Monitor(observer)
        self._numbers = itertools.count()
        self._jobs = Jobs(self.limits)
        self._thread: threading.Thread | None = None
        # These belong to the thread that steps.
        self._places = self._new_places()
        self._stepping = False

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
        try:
            # Before the prompt is tokenized too, so that refusing costs next to nothing.
            self._jobs.check_open()
            job = self._job(request, on_event, deadline_seconds, request_id)
            # Nothing is told of a request before it is told that the request was submitted.
            with self._jobs.lock:
                self._jobs.add(job)
                self._monitor.submitted(job)
        except OtterError as error:
            with self._jobs.lock:
                self._monitor.rejected(request_id, error)
            raise
        return job.ticket

    def cancel(self, ticket: Ticket) -> None:
        """End a request before the next step, wherever it is; its last event is `CancelledError`.

        A request that has ended already is left alone.
        """
        ticket.cancelled = True

    def step(self) -> bool:
        """One round: end the cancelled and expired, admit, feed prompts, generate a token each.

        Not to be called beside `start`.

        Returns:
            Whether work remains.
        """
        started = time.monotonic()
        self._stepping = True
        try:
            self._end_unwanted()
            for job in self._jobs.admit():
                self._places.add(job.sequence)
                self._monitor.admitted(job)
            self._feed_prompts()
            self._decode()
        finally:
            self._stepping = False
        self._monitor.step(self.stats, time.monotonic() - started)
        return bool(self._jobs)

    @property
    def stats(self) -> Stats:
        """Counts at this moment."""
        with self._jobs.lock:
            return self._monitor.stats(
                queued=self._jobs.queued,
                prefilling=self._places.prefilling,
                running=len(self._places.running),
            )

    def start(self) -> None:
        """Work on a thread of its own until `close`.

        Raises:
            RequestError: It was started or closed before.
        """
        self._jobs.check_open()
        if self._thread is not None:
            raise RequestError("the scheduler was started already")
        self._thread = threading.Thread(target=self._work, name="scheduler", daemon=True)
        self._thread.start()

    def close(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Refuse new requests, finish or cancel the others, and stop the thread.

        Called from inside ``on_event`` it does not wait.

        Args:
            drain: Finish what was accepted; otherwise all of it ends with `CancelledError`.
            timeout: Seconds after which even a drain cancels what is left.
        """
        self._jobs.close()
        if not drain:
            self._jobs.cancel_all()
        end = None if timeout is None else time.monotonic() + timeout
        self._finish(end)
        if end is not None and self._jobs:
            self._jobs.cancel_all()
            self._finish(None)

    def __enter__(self) -> Scheduler:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(drain=error is None)

    def _new_places(self) -> Places:
        separate = self._engine.manifest.execution_provider == "cpu"
        return Places(self._engine, self.limits.prefill_tokens, separate)

    def _job(
        self,
        request: Request,
        on_event: OnEvent,
        deadline_seconds: float | None,
        request_id: str | None,
    ) -> Job:
        if deadline_seconds is not None:
            check_number("deadline_seconds", deadline_seconds, above=0)
        number = next(self._numbers)
        sequence = SequenceState(number, request, self._engine)
        self.limits.check(sequence)
        ticket = Ticket(number, request_id, request, len(sequence.prompt_ids))
        deadline = None if deadline_seconds is None else time.monotonic() + deadline_seconds
        return Job(ticket, sequence, on_event, deadline)

    def _end_unwanted(self) -> None:
        unwanted = self._jobs.unwanted()
        if unwanted:
            lost = self._places.remove({sequence for sequence, _ in unwanted})
            self._tell([*unwanted, *lost])

    def _feed_prompts(self) -> None:
        tokens, failed = self._places.feed()
        if tokens:
            self._monitor.forward(tokens)
        for sequence in self._places.running:
            self._jobs[sequence].ticket.state = RUNNING
        self._tell(failed)

    def _decode(self) -> None:
        passes, outcomes = self._places.decode()
        for _ in range(passes):
            self._monitor.forward()
        self._tell(outcomes)

    def _tell(self, outcomes: Outcomes) -> None:
        """Tell requests what became of them; those that ended have no place any more."""
        for sequence, outcome in outcomes:
            if isinstance(outcome, OtterError):
                self._end(sequence, outcome)
                continue
            job = self._jobs[sequence]
            self._monitor.token(job, outcome)
            self._send(job, outcome)
            if outcome.finish_reason is not None:
                self._end(sequence, sequence.result())

    def _end(self, sequence: SequenceState, outcome: Result | OtterError) -> None:
        job = self._jobs.end(sequence)
        self._monitor.ended(job, outcome)
        self._send(job, outcome)

    def _send(self, job: Job, event: Event) -> None:
        if job.deaf:
            return
        try:
            job.on_event(event)
        # Whatever a callback does wrong, the others must go on.
        except Exception:
            job.deaf = job.ticket.cancelled = True
            _LOG.exception("request %s: on_event failed", job.ticket.request_id)

    def _finish(self, end: float | None) -> None:
        """Wait for the thread, or do its work here, until nothing is left or the time is over."""
        thread = self._thread
        # Closed from inside a callback: the round in progress has to end first.
        if thread is threading.current_thread() or (thread is None and self._stepping):
            return
        if thread is not None:
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
            return
        while self.step():
            if end is not None and time.monotonic() >= end:
                return

    def _work(self) -> None:
        """The thread: rounds while there is work, and sleep while there is none."""
        while self._jobs.wait():
            try:
                self.step()
            # A mistake in this package must not leave anybody waiting for ever.
            except Exception as error:
                _LOG.exception("the scheduler failed")
                self._places = self._new_places()
                failure = EngineError(f"the scheduler failed: {error!r}; please report it")
                self._tell([(sequence, failure) for sequence in self._jobs.take_all()])
