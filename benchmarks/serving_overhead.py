"""What the server costs over the library: the same requests, one at a time, in turn."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from benchmarks.serving_load import cpu_seconds
from benchmarks.serving_workload import METHODS, requests
from examples.triton_async import AsyncClient
from otter_export import generate
from otter_export.runtime.engine import Engine

#: Times that each is measured; the best one counts.
REPEATS = 6


@dataclasses.dataclass(frozen=True)
class Run:
    """One request, answered.

    Args:
        tokens: The answer.
        seconds: Wall time.
        cpu_seconds: CPU time of who answered.
    """

    tokens: tuple[int, ...]
    seconds: float
    cpu_seconds: float


async def overhead(
    engine: Engine, client: AsyncClient, group: int, lengths: Sequence[int]
) -> list[dict[str, Any]]:
    """A row for every method and number of tokens.

    Args:
        engine: The library's.
        client: A connection to the server.
        group: The server's process group.
        lengths: Numbers of tokens.
    """
    return [
        await _row(engine, client, group, name, tokens) for name in METHODS for tokens in lengths
    ]


async def _row(
    engine: Engine, client: AsyncClient, group: int, name: str, tokens: int
) -> dict[str, Any]:
    runs: dict[str, list[Run]] = {"library": [], "server": []}
    (fields,) = requests(name, tokens, 1)
    for i in range(REPEATS):
        # Who goes first changes, so that a machine that slows down favours neither.
        for who in ("library", "server") if i % 2 else ("server", "library"):
            run = _library(engine, name, fields) if who == "library" else None
            runs[who].append(run or await _server(client, group, fields))
    if len({run.tokens for both in runs.values() for run in both}) > 1:
        raise ValueError(f"server and library give different answers to {fields}")
    row: dict[str, Any] = {"method": name, "tokens": tokens}
    for who, those in runs.items():
        row[f"{who}_ms"] = round(1e3 * min(run.seconds for run in those), 2)
        # The first run warms up. Ticks of the clock are 10 ms, so this is a mean.
        used = [run.cpu_seconds for run in those[1:]]
        row[f"{who}_cpu_ms"] = round(1e3 * sum(used) / len(used), 2)
    row["ratio"] = round(row["server_ms"] / row["library_ms"], 4)
    row["cpu_ratio"] = round(row["server_cpu_ms"] / row["library_cpu_ms"], 4)
    return row


def _library(engine: Engine, name: str, fields: dict[str, Any]) -> Run:
    started, used = time.perf_counter(), time.process_time()
    prompt, tokens = fields["text_input"], fields["max_tokens"]
    result = generate(engine, prompt, METHODS[name][0], max_tokens=tokens)[0]
    return Run(result.token_ids, time.perf_counter() - started, time.process_time() - used)


async def _server(client: AsyncClient, group: int, fields: dict[str, Any]) -> Run:
    used, started = cpu_seconds(group), time.perf_counter()
    tokens = tuple([response["token_id"] async for response in client.stream(fields)])
    seconds = time.perf_counter() - started
    return Run(tokens, seconds, cpu_seconds(group) - used)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown."""
    lines = [
        "| method | tokens | library ms | server ms | server / library | CPU: library ms | "
        "server ms | server / library |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        wall = f"{row['library_ms']:.0f} | {row['server_ms']:.0f} | {row['ratio']:.3f}"
        cpu = f"{row['library_cpu_ms']:.0f} | {row['server_cpu_ms']:.0f} | {row['cpu_ratio']:.3f}"
        lines.append(f"| {row['method']} | {row['tokens']} | {wall} | {cpu} |")
    return "\n".join(lines)
