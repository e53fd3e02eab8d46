"""The requests of a scheduler, from when they are submitted until they end; thread-safe."""

from __future__ import annotations

import collections
import threading
import time

from otter_export.errors import (
    CancelledError,
    DeadlineError,
    OtterError,
    QueueFullError,
    RequestError,
)
from otter_export.runtime.limits import Limits
from otter_export.runtime.sequence import SequenceState
from otter_export.runtime.ticket import ENDED, PREFILLING, QUEUED, Job


class Jobs:
    """All requests that have not ended; those without a place wait in a queue.

    Args:
        limits: How many may wait, and who has room together.

    Attributes:
        lock: Guards everything here; whoever waits for it is told of changes.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.lock = threading.Condition()
        self._queue: collections.deque[Job] = collections.deque()
        self._jobs: dict[SequenceState, Job] = {}
        self._closed = False

    def __len__(self) -> int:
        """Requests that have not ended."""
        return len(self._jobs)

    def __getitem__(self, sequence: SequenceState) -> Job:
        """The request that runs this sequence."""
        return self._jobs[sequence]

    @property
    def queued(self) -> int:
        """Requests that wait for a place."""
        return len(self._queue)

    def check_open(self) -> None:
        """Raise `RequestError` after `close`, `QueueFullError` if one more may not wait."""
        if self._closed:
            raise RequestError("the scheduler is closed; it takes no more requests")
        limit = self._limits.max_queue
        if limit is not None and len(self._queue) >= limit:
            raise QueueFullError(f"{len(self._queue)} requests wait already; try again later")

    def add(self, job: Job) -> None:
        """Let a request wait, if `check_open` allows."""
        with self.lock:
            self.check_open()
            self._queue.append(job)
            self._jobs[job.sequence] = job
            self.lock.notify_all()

    def close(self) -> None:
        """Take no more requests."""
        with self.lock:
            self._closed = True
            self.lock.notify_all()

    def cancel_all(self) -> None:
        """Mark every request as cancelled."""
        with self.lock:
            for job in self._jobs.values():
                job.ticket.cancelled = True

    def wait(self) -> bool:
        """Wait for work; False once there is none and there will be none."""
        with self.lock:
            while not self._jobs and not self._closed:
                self.lock.wait()
            return bool(self._jobs)

    def unwanted(self) -> list[tuple[SequenceState, OtterError]]:
        """Requests that were cancelled or have expired, with their error; the queue loses them."""
        now = time.monotonic()
        found: list[tuple[SequenceState, OtterError]] = []
        with self.lock:
            for sequence, job in self._jobs.items():
                if job.ticket.cancelled:
                    found.append((sequence, CancelledError("the request was cancelled")))
                elif job.deadline is not None and now >= job.deadline:
                    seconds, tokens = round(job.deadline - job.submitted, 3), job.tokens
                    message = f"the request's {seconds:g} seconds were over after {tokens} tokens"
                    found.append((sequence, DeadlineError(message)))
            if found:
                gone = {sequence for sequence, _ in found}
                self._queue = collections.deque(j for j in self._queue if j.sequence not in gone)
        return found

    def admit(self) -> list[Job]:
        """Take those from the queue that get a place now, in order.

        A request that does not fit holds back those behind it, so that it cannot starve: places
        get free, and nobody else takes them.
        """
        admitted = []
        with self.lock:
            placed = [s.longest for s, j in self._jobs.items() if j.ticket.state != QUEUED]
            while self._queue:
                placed.append(self._queue[0].sequence.longest)
                if not self._limits.admits(placed):
                    break
                job = self._queue.popleft()
                job.ticket.state = PREFILLING
                admitted.append(job)
        return admitted

    def end(self, sequence: SequenceState) -> Job:
        """Forget a request that has no place any more."""
        with self.lock:
            job = self._jobs.pop(sequence)
            job.ticket.state = ENDED
        return job

    def take_all(self) -> list[SequenceState]:
        """Every request that has not ended; none waits any more."""
        with self.lock:
            self._queue.clear()
            return list(self._jobs)
