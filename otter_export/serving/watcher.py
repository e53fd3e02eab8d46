"""Polls for clients that are gone, and publishes metrics, on a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from otter_export.runtime.scheduler import RequestHandle
from otter_export.serving.responder import Channel

#: How often requests are looked at while there are any. A step takes about as long or longer, so a
#: cancelled request leaves before the next but one.
_BUSY_SECONDS = 0.03
#: How often metrics are published.
_PUBLISH_SECONDS = 0.5
#: Waiting requests that are asked per round; a question costs about 40 microseconds, and a full
#: queue would otherwise take a large part of a core.
_WAITING_PER_ROUND = 16


class Watcher:
    """A thread that polls for cancellation and publishes metrics.

    Args:
        cancel: Called with requests whose client is gone.
        publish: Called now and then, and once more at the end.
        failed: Called with what any of it raised; the watch goes on.
    """

    def __init__(
        self,
        cancel: Callable[[RequestHandle], None],
        publish: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._cancel = cancel
        self._publish = publish
        self._failed = failed
        self._watched: list[tuple[RequestHandle, Channel]] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def add(self, handle: RequestHandle, channel: Channel) -> None:
        """Watch a request until it ends.

        Args:
            handle: The scheduler's.
            channel: The way back to its client.
        """
        with self._lock:
            self._watched.append((handle, channel))
        self._wake.set()

    def close(self) -> None:
        """Publish once more and stop."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    def poll(self) -> bool:
        """One round; whether there is anything left to watch."""
        with self._lock:
            begun: list[tuple[RequestHandle, Channel]] = []
            waiting: list[tuple[RequestHandle, Channel]] = []
            for handle, channel in self._watched:
                if not handle.ended:
                    (begun if handle.sequence.token_ids else waiting).append((handle, channel))
            asked = begun + waiting[:_WAITING_PER_ROUND]
            # Those that were asked go to the end, so that all get their turn.
            self._watched = begun + waiting[_WAITING_PER_ROUND:] + waiting[:_WAITING_PER_ROUND]
        for handle, channel in asked:
            self._ask(handle, channel)
        return bool(asked)

    def _ask(self, handle: RequestHandle, channel: Channel) -> None:
        try:
            if channel.is_cancelled():
                self._cancel(handle)
        # The others must be asked all the same; this one is not asked again.
        except Exception as error:
            self._failed(error)
            with self._lock:
                self._watched.remove((handle, channel))

    def _run(self) -> None:
        rounds = round(_PUBLISH_SECONDS / _BUSY_SECONDS)
        count = 0
        while not self._closed:
            busy = self.poll()
            if not busy or count % rounds == 0:
                self._publish_guarded()
            count += 1
            if not busy:
                self._wake.wait(_PUBLISH_SECONDS)
                self._wake.clear()
            else:
                time.sleep(_BUSY_SECONDS)
        self._publish_guarded()

    def _publish_guarded(self) -> None:
        try:
            self._publish()
        # Without this thread, cancelled requests would keep their places for ever.
        except Exception as error:
            self._failed(error)
