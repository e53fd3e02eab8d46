"""Load on a served engine: a number of clients, each with one request after the other."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.serving_workload import METHODS, requests
from examples.triton_async import AsyncClient

#: Requests per level: enough that all clients are busy most of the time, and no more.
PER_CLIENT, LEAST = 2, 6


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
        cpu_seconds: CPU time of the server, which other work on the machine disturbs less.
    """

    concurrency: int
    timings: tuple[Timing, ...]
    seconds: float
    cpu_seconds: float

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
            "cpu_ms_per_token": round(1e3 * self.cpu_seconds / self.tokens, 2),
            "milliseconds": self.percentiles(),
        }


def _percentiles(seconds: Sequence[float] | np.ndarray[Any, Any]) -> dict[str, float]:
    values = np.percentile(1e3 * np.asarray(seconds), [50, 95, 99])
    return {f"p{p}": round(float(v), 2) for p, v in zip((50, 95, 99), values, strict=True)}


def cpu_seconds(group: int) -> float:
    """CPU time that the processes of a group have used so far.

    Args:
        group: Its id, `TritonServer.pid` for a server with its models.
    """
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            # What follows the name in parentheses: state, parent, group, ...; proc(5).
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


async def run(
    client: AsyncClient, requests: Sequence[dict[str, Any]], concurrency: int, group: int
) -> Load:
    """Send all requests, ``concurrency`` at a time.

    Args:
        client: The connection that all clients share.
        group: Of the server, see `cpu_seconds`.
        requests: Fields of each request.
        concurrency: How many are in flight, as long as there are more to send.
    """
    waiting = list(reversed(requests))
    timings: list[Timing] = []

    async def one_client() -> None:
        while waiting:
            timings.append(await measure(client, waiting.pop()))

    started, used = time.perf_counter(), cpu_seconds(group)
    await asyncio.gather(*(one_client() for _ in range(concurrency)))
    seconds = time.perf_counter() - started
    return Load(concurrency, tuple(timings), seconds, cpu_seconds(group) - used)


async def measure(client: AsyncClient, fields: dict[str, Any]) -> Timing:
    """Send one request and note when its tokens come."""
    started = time.perf_counter()
    arrived = [
        time.perf_counter() async for response in client.stream(fields) if "token_id" in response
    ]
    return Timing(started, tuple(arrived))


async def under_load(
    client: AsyncClient,
    group: int,
    levels: Sequence[int],
    tokens: int,
    passes: int,
    deadline: float,
) -> dict[str, list[dict[str, Any]]]:
    """Rows by method: the best pass of every level.

    Args:
        client: A connection to the server.
        group: The server's process group.
        levels: Numbers of requests at a time.
        tokens: Of each request.
        passes: Through all levels, up and down in turn.
        deadline: Of the monotonic clock; after it nothing is measured a second time.
    """
    for name in METHODS:
        await run(client, requests(name, 4, 4), 4, group)  # warms up
    best: dict[tuple[str, int], Load] = {}
    steps = [
        (name, level)
        for i in range(passes)
        for level in sorted(levels, reverse=bool(i % 2))
        for name in METHODS
    ]
    for name, level in steps:
        if (name, level) in best and time.monotonic() > deadline:
            continue
        sent = requests(name, tokens, max(LEAST, PER_CLIENT * level))
        load = await run(client, sent, level, group)
        known = best.setdefault((name, level), load)
        best[name, level] = max(known, load, key=lambda one: one.throughput)
    return {name: [best[name, level].to_json() for level in sorted(levels)] for name in METHODS}


def table(report: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: throughput and latency by requests at a time."""
    lines = [
        "| method | at a time | tokens/s | / one at a time | server's CPU ms per token | "
        "first token ms p50, p95 | per token ms p50, p95 | total ms p50, p95 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in report.items():
        for row in rows:
            ratio = row["tokens_per_second"] / rows[0]["tokens_per_second"]
            times = " | ".join(
                f"{values['p50']:.0f}, {values['p95']:.0f}"
                for values in row["milliseconds"].values()
            )
            lines.append(
                f"| {name} | {row['concurrency']} | {row['tokens_per_second']:.1f} | {ratio:.2f} | "
                f"{row['cpu_ms_per_token']:.1f} | {times} |"
            )
    return "\n".join(lines)
