"""Continuous batching: requests join and leave the running batch between steps."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterable
from types import TracebackType

from otter_export.arguments import number
from otter_export.errors import EngineError, OtterError, RequestError
from otter_export.runtime.engine import Engine
from otter_export.runtime.request import Request, Result
from otter_export.runtime.scheduler.decode import Decoder
from otter_export.runtime.scheduler.handle import OnEvent, RequestHandle
from otter_export.runtime.scheduler.limits import Limits
from otter_export.runtime.scheduler.observer import Monitor, Observer, Stats
from otter_export.runtime.scheduler.prefill import PrefillQueue
from otter_export.runtime.scheduler.queue import RequestQueue
from otter_export.runtime.scheduler.sequence import Sequence, State

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
        observers: Hear of everything that happens.

    Attributes:
        limits: The limits that count.
    """

    def __init__(
        self,
        engine: Engine,
        limits: Limits | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        self._engine = engine
        self.limits = (limits or Limits()).within(engine.manifest)
        self._monitor = Monitor(observers)
        self._numbers = itertools.count()
        self._queue = RequestQueue(self.limits)
        self._thread: threading.Thread | None = None
        # What follows belongs to the thread that steps.
        self._stepping = False
        self._reset()

    def submit(
        self,
        request: Request,
        *,
        on_event: OnEvent,
        deadline_seconds: float | None = None,
        request_id: str | None = None,
    ) -> RequestHandle:
        """Accept a request; it waits for room, first come, first served.

        Args:
            request: The request.
            on_event: Called on the scheduler's thread with each `TokenEvent`, and at the end with
                one `Result` or one `OtterError`. It must return quickly; if it raises, the request
                is ended and the exception is logged.
            deadline_seconds: Above 0: the request ends with `DeadlineError` if it takes longer,
                waiting included.
            request_id: Any name, for logs and metrics.

        Returns:
            Its handle, for `cancel`.

        Raises:
            QueueFullError: Too many requests wait already.
            RequestError: The request is not valid for this engine or exceeds a limit, or the
                scheduler is closed.
            EngineError: The engine has no such signal.
        """
        try:
            # Before the prompt is tokenized too, so that refusing costs next to nothing.
            self._queue.check_open()
            if deadline_seconds is not None:
                deadline_seconds = number("deadline_seconds", deadline_seconds, above=0)
            sequence = Sequence(next(self._numbers), request, self._engine)
            self.limits.check(sequence)
            handle = RequestHandle(sequence, on_event, deadline_seconds, request_id)
            # Nothing is told of a request before it is told that the request was submitted.
            with self._queue.lock:
                self._queue.add(handle)
                self._monitor.submitted(handle)
        except OtterError as error:
            with self._queue.lock:
                self._monitor.rejected(request_id, error)
            raise
        return handle

    def cancel(self, handle: RequestHandle) -> None:
        """End a request before the next step, wherever it is; its last event is `CancelledError`.

        A request that has ended already is left alone.
        """
        handle.cancelled = True

    def step(self) -> bool:
        """One round: end the cancelled and expired, admit, feed prompts, generate a token each.

        Not to be called beside `start`.

        Returns:
            Whether work remains.
        """
        started = time.monotonic()
        self._stepping = True
        try:
            self._end_overdue()
            self._admit()
            self._feed_prompts()
            self._decode()
        finally:
            self._stepping = False
        self._monitor.step(lambda: self.stats, time.monotonic() - started)
        return len(self._queue) > 0

    @property
    def stats(self) -> Stats:
        """Counts at this moment."""
        with self._queue.lock:
            states = [handle.state for handle in self._queue.active.values()]
            return self._monitor.stats(
                queued=len(self._queue.waiting),
                prefilling=states.count(State.PREFILLING),
                running=states.count(State.RUNNING),
            )

    def start(self) -> None:
        """Work on a thread of its own until `close`.

        Raises:
            RequestError: It was started or closed before.
        """
        self._queue.check_open()
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
        self._queue.close()
        if not drain:
            self._queue.cancel_all()
        end = None if timeout is None else time.monotonic() + timeout
        self._finish(end)
        if end is not None and len(self._queue):
            self._queue.cancel_all()
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

    def _reset(self) -> None:
        separate = self._engine.manifest.execution_provider == "cpu"
        self._prefill = PrefillQueue(self._engine, self.limits.prefill_tokens)
        self._decoder = Decoder(self._engine, separate)

    def _end_overdue(self) -> None:
        overdue = self._queue.overdue()
        if overdue:
            sequences = {handle.sequence for handle, _ in overdue}
            self._prefill.remove(sequences)
            self._decoder.remove(sequences)
            for handle, error in overdue:
                self._end(handle, error)
            self._end_failed()

    def _admit(self) -> None:
        for handle in self._queue.admit():
            self._prefill.add(handle.sequence)
            self._monitor.admitted(handle)

    def _feed_prompts(self) -> None:
        tokens, complete = self._prefill.step()
        if tokens:
            self._monitor.forward(prompt_tokens=tokens)
        for sequence in complete:
            if sequence.finish_reason is None:
                sequence.state = State.RUNNING
            else:
                self._end(self._queue.active[sequence.number], _outcome(sequence))
        self._decoder.join([s for s in complete if s.finish_reason is None])
        self._end_failed()

    def _decode(self) -> None:
        passes, events = self._decoder.step()
        self._monitor.forward(passes)
        for event in events:
            handle = self._queue.active[event.request]
            self._monitor.token(handle, event)
            handle.send(event)
            if event.finish_reason is not None:
                self._end(handle, _outcome(handle.sequence))
        self._end_failed()

    def _end_failed(self) -> None:
        for handle in list(self._queue.active.values()):
            if handle.sequence.error is not None:
                self._end(handle, handle.sequence.error)

    def _end(self, handle: RequestHandle, outcome: Result | OtterError) -> None:
        """Send the last event to a request whose sequence is neither fed nor decoded any more."""
        self._queue.end(handle)
        self._monitor.ended(handle, outcome)
        handle.send(outcome)

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
        while self._queue.wait():
            try:
                self.step()
            # Nothing may leave anybody waiting for ever: no mistake in this package, and no panic
            # of a Rust library either, which is no Exception.
            except BaseException as error:
                _LOG.exception("the scheduler failed")
                self._reset()
                failure = EngineError(f"the scheduler failed: {error!r}; please report it")
                for handle in self._queue.all():
                    self._end(handle, failure)


def _outcome(sequence: Sequence) -> Result | OtterError:
    """The result of a finished sequence, or why its text cannot be told."""
    try:
        return sequence.result()
    except OtterError as error:
        return error
