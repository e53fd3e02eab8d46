"""Looks after the requests in work: whose client is gone, and what the metrics are."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from otter_export.serving.responder import Live

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
        cancel: Callable[[Live], None],
        publish: Callable[[], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._cancel = cancel
        self._publish = publish
        self._failed = failed
        self._live: list[Live] = []
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def add(self, live: Live) -> None:
        """Watch a request that has its ticket, until it ends."""
        with self._lock:
            self._live.append(live)
        self._wake.set()

    def close(self) -> None:
        """Publish once more and stop."""
        self._closed = True
        self._wake.set()
        self._thread.join()

    def poll(self) -> bool:
        """One round; whether there is anything left to watch."""
        with self._lock:
            self._live = [live for live in self._live if live.ticket and not live.ticket.ended]
            started = [live for live in self._live if live.started]
            waiting = [live for live in self._live if not live.started]
            asked = started + waiting[:_WAITING_PER_ROUND]
            # Those that were asked go to the end, so that all get their turn.
            self._live = started + waiting[_WAITING_PER_ROUND:] + waiting[:_WAITING_PER_ROUND]
        for live in asked:
            self._ask(live)
        return bool(asked)

    def _ask(self, live: Live) -> None:
        try:
            if live.channel.is_cancelled():
                self._cancel(live)
        # The others must be asked all the same; this one is not asked again.
        except Exception as error:
            self._failed(error)
            with self._lock:
                self._live.remove(live)

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
