"""Metrics of a served model: collected as plain numbers, published now and then.

Publishing costs a message to the server for each number, about 50 microseconds, so nothing is sent
per token. Histograms are kept as Prometheus sends them, as counters of buckets: the server's own
kind would need a message for each observation.
"""

from __future__ import annotations

import bisect
import math
import threading
from collections.abc import Sequence
from typing import Protocol

from otter_export.errors import OtterError, QueueFullError
from otter_export.runtime.request import Result, TokenEvent
from otter_export.runtime.scheduler import Observer, RequestHandle, Stats

#: Upper bounds of buckets, in seconds.
FIRST_TOKEN_SECONDS = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
TOKEN_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
REQUEST_SECONDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)

COUNTERS = {
    "otter_requests_total": "Requests that ended, by outcome",
    "otter_rejected_total": "Requests that were refused, by reason",
    "otter_prompt_tokens_total": "Prompt tokens fed",
    "otter_tokens_total": "Tokens generated",
    "otter_forwards_total": "Forward passes, of prompts and of decoding steps",
    "otter_candidates_total": "Candidates scored",
    "otter_gated_total": "Tokens chosen without rewards because a gate was closed",
    "otter_drafted_total": "Drafts fed, of requests that ended",
    "otter_accepted_total": "Drafts that were right, of requests that ended",
}
GAUGES = {
    "otter_queue_length": "Requests that wait for a place",
    "otter_running": "Requests that have a place, prefilling or decoding",
    "otter_reward_sum": "Sum of the rewards of the generated tokens",
    "otter_mean_reward": "Mean reward of the generated tokens",
}
HISTOGRAMS = {
    "otter_time_to_first_token_seconds": FIRST_TOKEN_SECONDS,
    "otter_time_per_token_seconds": TOKEN_SECONDS,
    "otter_request_seconds": REQUEST_SECONDS,
}

Labels = tuple[tuple[str, str], ...]


class Sink(Protocol):
    """Where numbers go."""

    def add(self, name: str, labels: Labels, amount: float) -> None:
        """A counter grew."""
        ...

    def set(self, name: str, labels: Labels, value: float) -> None:
        """A gauge has a new value."""
        ...


class Histogram:
    """Counts of observations by size.

    Args:
        bounds: Upper bounds of its buckets, rising.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = (*bounds, math.inf)
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self._sum += value

    def values(self, name: str) -> dict[tuple[str, Labels], float]:
        """As Prometheus has it: cumulative ``_bucket{le=...}``, ``_sum`` and ``_count``."""
        values: dict[tuple[str, Labels], float] = {}
        total = 0
        for bound, count in zip(self._bounds, self._counts, strict=True):
            total += count
            le = "+Inf" if math.isinf(bound) else f"{bound:g}"
            values[f"{name}_bucket", (("le", le),)] = total
        return {**values, (f"{name}_sum", ()): self._sum, (f"{name}_count", ()): total}


class Metrics(Observer):
    """Collects what a scheduler tells; see `publish`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rejected: dict[str, int] = {}
        self._histograms = {name: Histogram(bounds) for name, bounds in HISTOGRAMS.items()}
        self._published: dict[tuple[str, Labels], float] = {}

    def rejected(self, request_id: str | None, error: OtterError) -> None:
        """Count by reason; also for requests that never reach the scheduler."""
        reason = "queue_full" if isinstance(error, QueueFullError) else "invalid"
        with self._lock:
            self._rejected[reason] = self._rejected.get(reason, 0) + 1

    def token(self, handle: RequestHandle, event: TokenEvent, seconds: float, first: bool) -> None:
        """Observe how long it took."""
        name = "otter_time_to_first_token_seconds" if first else "otter_time_per_token_seconds"
        with self._lock:
            self._histograms[name].observe(seconds)

    def ended(self, handle: RequestHandle, outcome: Result | OtterError, seconds: float) -> None:
        """Observe how long it took."""
        with self._lock:
            self._histograms["otter_request_seconds"].observe(seconds)

    def publish(self, stats: Stats, sink: Sink) -> None:
        """Send what changed since the last time; from one thread only.

        Args:
            stats: The scheduler's, now.
            sink: Takes the numbers.
        """
        for (name, labels), value in self._values(stats).items():
            before = self._published.get((name, labels))
            if before == value:
                continue
            if name in GAUGES:
                sink.set(name, labels, value)
            else:
                sink.add(name, labels, value - (before or 0))
            self._published[name, labels] = value

    def _values(self, stats: Stats) -> dict[tuple[str, Labels], float]:
        values: dict[tuple[str, Labels], float] = {
            ("otter_queue_length", ()): stats.queued,
            ("otter_running", ()): stats.prefilling + stats.running,
            ("otter_prompt_tokens_total", ()): stats.prompt_tokens,
            ("otter_tokens_total", ()): stats.tokens,
            ("otter_forwards_total", ()): stats.forwards,
            ("otter_candidates_total", ()): stats.candidates,
            ("otter_gated_total", ()): stats.gated,
            ("otter_drafted_total", ()): stats.drafted,
            ("otter_accepted_total", ()): stats.accepted,
            ("otter_reward_sum", ()): stats.reward_sum,
            ("otter_mean_reward", ()): stats.mean_reward,
        }
        for outcome in ("completed", "cancelled", "expired", "failed"):
            key = ("otter_requests_total", (("outcome", outcome),))
            values[key] = getattr(stats, outcome)
        with self._lock:
            for reason in ("invalid", "queue_full"):
                key = ("otter_rejected_total", (("reason", reason),))
                values[key] = self._rejected.get(reason, 0)
            for name, histogram in self._histograms.items():
                values |= histogram.values(name)
        return values


def description(name: str) -> str:
    """What a metric means, for the server's page."""
    known = {**COUNTERS, **GAUGES}
    return known.get(name) or "Seconds, as a cumulative histogram: _bucket, _sum and _count"
