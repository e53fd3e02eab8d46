"""Continuous batching (docs/batching.md): from a request to its tokens, on any `Engine`.

`Scheduler` holds a `RequestHandle` for each request: first in its `RequestQueue`, then with a
`Sequence` whose prompt a `PrefillQueue` feeds and which a `Decoder` takes through its `Batch`.
"""

from otter_export.runtime.scheduler.handle import Event, OnEvent, RequestHandle
from otter_export.runtime.scheduler.limits import Limits
from otter_export.runtime.scheduler.observer import Observer, Stats
from otter_export.runtime.scheduler.scheduler import Scheduler

__all__ = [
    "Event",
    "Limits",
    "Observer",
    "OnEvent",
    "RequestHandle",
    "Scheduler",
    "Stats",
]
