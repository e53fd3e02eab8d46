"""A served engine under load, against one request at a time and against the library itself.

    python benchmarks/serving.py ENGINE [--out FILE.json] [--plot FILE.png]

Starts tritonserver on 127.0.0.1 with the repository that ``otter-export triton`` writes, and asks:

- How many tokens per second, and after how many milliseconds, for 1 to 32 requests at a time?
- What does the server cost over the library: the same prompts by `generate`, in turn with it?

Client and server share the machine, so the client's own work counts against the server. Each level
is measured in several passes, up and down, and its best pass counts: on a machine with other work
the best one is the least disturbed.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import serving_load
from examples.triton_async import AsyncClient
from examples.triton_server import HOST, start
from otter_export import ArgsGreedy, Plain, generate, load_engine
from otter_export.runtime.engine import Engine
from otter_export.runtime.methods.base import DecodingMethod

PROMPTS = (
    "The movie was",
    "I watched this film last night and",
    "My opinion of the new restaurant in town:",
    "After two weeks with this phone I can say that",
    "The book begins slowly, but",
    "Review of the concert:",
)
WEIGHT, TOP_K = 4.0, 8
#: By name: the library's method, and the server's fields for the same.
METHODS: dict[str, tuple[DecodingMethod, dict[str, Any]]] = {
    "plain": (Plain(), {"method": "plain"}),
    "guided": (
        ArgsGreedy(top_k=TOP_K, weight=WEIGHT),
        {"method": "args-greedy", "top_k": TOP_K, "reward_weight": WEIGHT},
    ),
}
#: Requests per level: enough that all clients are busy most of the time, and no more.
PER_CLIENT, LEAST = 2, 6


@click.command()
@click.argument("engine", type=click.Path(path_type=Path, exists=True))
@click.option("--levels", default="1,2,4,8,16,32", show_default=True, help="Requests at a time.")
@click.option("--tokens", type=click.IntRange(2), default=32, show_default=True)
@click.option("--passes", type=click.IntRange(1), default=2, show_default=True)
@click.option("--overhead-tokens", default="16,32,64", show_default=True)
@click.option("--max-seconds", default=330.0, show_default=True, help="No pass starts after this.")
@click.option("--out", type=click.Path(path_type=Path), help="Every number, as JSON.")
@click.option("--plot", type=click.Path(path_type=Path), help="Throughput and latency as PNG.")
def main(
    engine: Path,
    levels: str,
    tokens: int,
    passes: int,
    overhead_tokens: str,
    max_seconds: float,
    out: Path | None,
    plot: Path | None,
) -> None:
    """Measure ENGINE, served; print tables in Markdown."""
    deadline = time.monotonic() + max_seconds
    with tempfile.TemporaryDirectory() as scratch:
        repository = make_repository(engine, Path(scratch) / "repository")
        log = Path(scratch) / "server.log"
        with start(repository, log, lifetime_seconds=2 * max_seconds + 600) as server:
            address = f"{HOST}:{server.ports.grpc}"
            lengths = [int(n) for n in overhead_tokens.split(",")]
            precision = json.loads((engine / "engine.json").read_text())["precision"]
            report: dict[str, Any] = {"precision": precision, "cores": os.cpu_count()}
            report["overhead"] = asyncio.run(overhead(load_engine(engine), address, lengths))
            click.echo(overhead_table(report["overhead"]) + "\n")
            counts = [int(n) for n in levels.split(",")]
            report["load"] = asyncio.run(under_load(address, counts, tokens, passes, deadline))
    click.echo(load_table(report["load"]))
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        from benchmarks.serving_plot import draw

        draw(report["load"], plot)


def make_repository(engine: Path, repository: Path) -> Path:
    """A model repository, by the command line as a user makes it."""
    command = [sys.executable, "-m", "otter_export", "triton", str(engine), "--out"]
    subprocess.run([*command, str(repository)], check=True, stdout=subprocess.DEVNULL)
    return repository


def requests(method: str, tokens: int, count: int) -> list[dict[str, Any]]:
    """Fields of ``count`` requests over all prompts."""
    shared = {**METHODS[method][1], "max_tokens": tokens, "stream": True}
    return [{**shared, "text_input": PROMPTS[i % len(PROMPTS)]} for i in range(count)]


async def overhead(engine: Engine, address: str, lengths: Sequence[int]) -> list[dict[str, Any]]:
    """Milliseconds of one request alone, by the library and by the server, in turn."""
    async with AsyncClient(address) as client:
        return [
            await compared(engine, client, name, tokens) for name in METHODS for tokens in lengths
        ]


async def compared(
    engine: Engine, client: AsyncClient, name: str, tokens: int, repeats: int = 6
) -> dict[str, Any]:
    """One row of `overhead`: each one's best."""
    (one,) = requests(name, tokens, 1)
    seconds: dict[str, list[float]] = {"library": [], "server": []}
    answers = set()
    for i in range(repeats):
        # Who goes first changes, so that a machine that slows down favours neither.
        for who in ("library", "server") if i % 2 else ("server", "library"):
            started = time.perf_counter()
            if who == "library":
                prompt, method = one["text_input"], METHODS[name][0]
                answer = generate(engine, prompt, method, max_tokens=tokens)[0].token_ids
            else:
                responses = [response async for response in client.stream(one)]
                answer = tuple(response["token_id"] for response in responses)
            seconds[who].append(time.perf_counter() - started)
            answers.add(answer)
    if len(answers) > 1:
        raise click.ClickException(f"server and library give different answers to {one}")
    best = {who: 1e3 * min(values) for who, values in seconds.items()}
    return {
        "method": name,
        "tokens": tokens,
        **{f"{who}_ms": round(value, 2) for who, value in best.items()},
        "ratio": round(best["server"] / best["library"], 4),
    }


async def under_load(
    address: str, levels: Sequence[int], tokens: int, passes: int, deadline: float
) -> dict[str, list[dict[str, Any]]]:
    """The best pass of every method and level."""
    best: dict[tuple[str, int], serving_load.Load] = {}
    async with AsyncClient(address) as client:
        for name in METHODS:
            await serving_load.run(client, requests(name, 4, 4), 4)  # warms up
        for i in range(passes):
            for level in sorted(levels, reverse=bool(i % 2)):
                for name in METHODS:
                    if (name, level) in best and time.monotonic() > deadline:
                        continue
                    sent = requests(name, tokens, max(LEAST, PER_CLIENT * level))
                    load = await serving_load.run(client, sent, level)
                    key = (name, level)
                    if key not in best or load.throughput > best[key].throughput:
                        best[key] = load
    return {name: [best[name, level].to_json() for level in sorted(levels)] for name in METHODS}


def overhead_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: the server over the library, one request alone."""
    lines = [
        "| method | tokens | library ms | server ms | server / library |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['method']} | {row['tokens']} | {row['library_ms']:.1f} | "
            f"{row['server_ms']:.1f} | {row['ratio']:.3f} |"
        )
    return "\n".join(lines)


def load_table(report: dict[str, list[dict[str, Any]]]) -> str:
    """Markdown: throughput and latency by requests at a time."""
    lines = [
        "| method | at a time | tokens/s | / one at a time | first token ms p50, p95 | "
        "per token ms p50, p95 | total ms p50, p95 |",
        "|---|---|---|---|---|---|---|",
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
                f"{times} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
