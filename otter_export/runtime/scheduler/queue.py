"""The requests of a scheduler: those that wait, and those that have their place; thread-safe."""

from __future__ import annotations

import collections
import threading
import time

from otter_export.errors import OtterError, QueueFullError, RequestError
from otter_export.runtime.scheduler.handle import RequestHandle
from otter_export.runtime.scheduler.limits import Limits
from otter_export.runtime.scheduler.sequence import State


class RequestQueue:
    """All requests that have not ended.

    Args:
        limits: How many may wait, and who has room together.

    Attributes:
        lock: Guards everything here; whoever waits for it is told of changes.
        waiting: Requests that wait for room, in order.
        active: Requests that were admitted, by their number.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._closed = False
        self.lock = threading.Condition()
        self.waiting: collections.deque[RequestHandle] = collections.deque()
        self.active: dict[int, RequestHandle] = {}

    def __len__(self) -> int:
        """Requests that have not ended."""
        return len(self.waiting) + len(self.active)

    def check_open(self) -> None:
        """Raise `RequestError` after `close`, `QueueFullError` if one more may not wait."""
        if self._closed:
            raise RequestError("the scheduler is closed; it takes no more requests")
        limit = self._limits.max_queue
        if limit is not None and len(self.waiting) >= limit:
            raise QueueFullError(f"{len(self.waiting)} requests wait already; try again later")

    def add(self, handle: RequestHandle) -> None:
        """Let a request wait, if `check_open` allows."""
        with self.lock:
            self.check_open()
            self.waiting.append(handle)
            self.lock.notify_all()

    def close(self) -> None:
        """Take no more requests."""
        with self.lock:
            self._closed = True
            self.lock.notify_all()

    def cancel_all(self) -> None:
        """Mark every request as cancelled."""
        for handle in self.all():
            handle.cancelled = True

    def wait(self) -> bool:
        """Wait for work; False once there is none and there will be none."""
        with self.lock:
            while not len(self) and not self._closed:
                self.lock.wait()
            return len(self) > 0

    def all(self) -> list[RequestHandle]:
        """Every request that has not ended, in order."""
        with self.lock:
            return [*self.active.values(), *self.waiting]

    def overdue(self) -> list[tuple[RequestHandle, OtterError]]:
        """Requests that were cancelled or have expired, each with its error."""
        now = time.monotonic()
        return [(h, error) for h in self.all() if (error := h.overdue(now)) is not None]

    def admit(self) -> list[RequestHandle]:
        """Take those that have room now from the waiting ones, in order.

        A request that does not fit holds back those behind it, so that it cannot starve: room
        comes free, and nobody else takes it.
        """
        admitted = []
        with self.lock:
            lengths = [handle.sequence.max_length for handle in self.active.values()]
            while self.waiting:
                lengths.append(self.waiting[0].sequence.max_length)
                if not self._limits.admits(lengths):
                    break
                handle = self.waiting.popleft()
                handle.sequence.state = State.PREFILLING
                self.active[handle.number] = handle
                admitted.append(handle)
        return admitted

    def end(self, handle: RequestHandle) -> None:
        """Forget a request, wherever it is."""
        with self.lock:
            if self.active.pop(handle.number, None) is None:
                self.waiting.remove(handle)
            handle.sequence.end()
