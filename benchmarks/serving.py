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
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import serving_load, serving_overhead
from benchmarks.serving_load import under_load
from benchmarks.serving_overhead import overhead
from benchmarks.serving_plot import draw
from examples.triton_async import AsyncClient
from otter_export import load_engine
from tools.tritonserver.server import HOST, TritonServer, start


@click.command()
@click.argument("engine", type=click.Path(path_type=Path, exists=True))
@click.option("--levels", default="1,2,4,8,16,32", show_default=True, help="Requests at a time.")
@click.option("--tokens", type=click.IntRange(2), default=32, show_default=True)
@click.option("--passes", type=click.IntRange(1), default=2, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Of the engine.  [default: all cores]")
@click.option("--overhead-tokens", default="16,32,64", show_default=True)
@click.option("--max-seconds", default=330.0, show_default=True, help="No pass starts after this.")
@click.option("--out", type=click.Path(path_type=Path), help="Every number, as JSON.")
@click.option("--plot", type=click.Path(path_type=Path), help="Throughput and latency as PNG.")
def main(
    engine: Path,
    levels: str,
    tokens: int,
    passes: int,
    threads: int | None,
    overhead_tokens: str,
    max_seconds: float,
    out: Path | None,
    plot: Path | None,
) -> None:
    """Measure ENGINE, served; print tables in Markdown."""
    deadline = time.monotonic() + max_seconds
    lengths = [int(n) for n in overhead_tokens.split(",")]
    counts = [int(n) for n in levels.split(",")]
    library = load_engine(engine, threads=threads)

    async def measure(server: TritonServer) -> dict[str, Any]:
        async with AsyncClient(f"{HOST}:{server.ports.grpc}") as client:
            alone = await overhead(library, client, server.pid, lengths)
            click.echo(serving_overhead.table(alone) + "\n")
            load = await under_load(client, server.pid, counts, tokens, passes, deadline)
            click.echo(serving_load.table(load))
        precision = library.manifest.precision
        return {"precision": precision, "cores": os.cpu_count(), "overhead": alone, "load": load}

    with tempfile.TemporaryDirectory() as scratch:
        repository = make_repository(engine, Path(scratch) / "repository", threads)
        log = Path(scratch) / "server.log"
        # More than all of it takes, should this process be killed.
        with start(repository, log, lifetime_seconds=2 * max_seconds + 600) as server:
            report = asyncio.run(measure(server))
    if out is not None:
        out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if plot is not None:
        draw(report["load"], plot)


def make_repository(engine: Path, repository: Path, threads: int | None) -> Path:
    """A model repository, by the command line as a user makes it."""
    command = [sys.executable, "-m", "otter_export", "triton", str(engine), f"--out={repository}"]
    options = [f"--threads={threads}"] if threads else []
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    return repository


if __name__ == "__main__":
    main()
