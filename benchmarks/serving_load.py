"""Load on a served engine: a number of clients, each with one request after the other."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from examples.triton_async import AsyncClient


@dataclasses.dataclass(frozen=True)
class Timing:
    """One request.

    Args:
        started: When it was sent, in seconds of a monotonic clock.
        arrived: When each of its tokens came.
    """

    started: float
    arrived: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Load:
    """What a number of clients got.

    Args:
        concurrency: Clients.
        timings: Their requests.
        seconds: From the first one's start to the last one's end.
    """

    concurrency: int
    timings: tuple[Timing, ...]
    seconds: float

    @property
    def tokens(self) -> int:
        """Generated tokens of all requests."""
        return sum(len(t.arrived) for t in self.timings)

    @property
    def throughput(self) -> float:
        """Generated tokens per second."""
        return self.tokens / self.seconds

    def percentiles(self) -> dict[str, dict[str, float]]:
        """Milliseconds to the first token, between tokens, and in all; p50, p95 and p99 of each."""
        first = [t.arrived[0] - t.started for t in self.timings]
        gaps = [np.diff(t.arrived) for t in self.timings]
        total = [t.arrived[-1] - t.started for t in self.timings]
        return {
            "first_token": _percentiles(first),
            "per_token": _percentiles(np.concatenate(gaps)),
            "total": _percentiles(total),
        }

    def to_json(self) -> dict[str, Any]:
        """One row of the report."""
        return {
            "concurrency": self.concurrency,
            "requests": len(self.timings),
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "tokens_per_second": round(self.throughput, 2),
            "milliseconds": self.percentiles(),
        }


def _percentiles(seconds: Sequence[float] | np.ndarray[Any, Any]) -> dict[str, float]:
    values = np.percentile(1e3 * np.asarray(seconds), [50, 95, 99])
    return {f"p{p}": round(float(v), 2) for p, v in zip((50, 95, 99), values, strict=True)}


async def run(client: AsyncClient, requests: Sequence[dict[str, Any]], concurrency: int) -> Load:
    """Send all requests, ``concurrency`` at a time.

    Args:
        client: The connection that all clients share.
        requests: Fields of each request.
        concurrency: How many are in flight, as long as there are more to send.
    """
    waiting = list(reversed(requests))
    timings: list[Timing] = []

    async def one_client() -> None:
        while waiting:
            timings.append(await measure(client, waiting.pop()))

    started = time.perf_counter()
    await asyncio.gather(*(one_client() for _ in range(concurrency)))
    return Load(concurrency, tuple(timings), time.perf_counter() - started)


async def measure(client: AsyncClient, fields: dict[str, Any]) -> Timing:
    """Send one request and note when its tokens come."""
    started = time.perf_counter()
    arrived = [
        time.perf_counter() async for response in client.stream(fields) if "token_id" in response
    ]
    return Timing(started, tuple(arrived))
