"""Options that several commands have: how an engine is loaded, and what a server allows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from otter_export.cli.progress import byte_bar
from otter_export.engine_digest import check_engine
from otter_export.runtime.load import PROVIDERS

Decorator = Callable[[Any], Any]


def _together(*options: Decorator) -> Decorator:
    """Options as one decorator, in their order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


placement = _together(
    click.option(
        "--threads", type=int, help="Of the CPU.  [default: OMP_NUM_THREADS, else all cores]"
    ),
    click.option("--provider", type=click.Choice(PROVIDERS), help="[default: the engine's own]"),
)
digest = click.option(
    "--sha256", metavar="DIGEST", help="Load this engine and no other; see `inspect --sha256`."
)
#: Fields of `otter_export.serving.settings.Settings`; what is not given is None.
server_limits = _together(
    click.option(
        "--max-batch-size", type=int, help="Most requests decoded together.  [default: 16]"
    ),
    click.option("--max-queue", type=int, help="Most requests that wait.  [default: 256]"),
    click.option("--max-tokens", type=int, help="Most tokens of a request.  [default: 1024]"),
    click.option("--max-candidates", type=int, help="Most candidates per token.  [default: 64]"),
    click.option(
        "--method",
        "default_method",
        help="Of a request that names none; see `list methods`.  [default: auto]",
    ),
    click.option(
        "--top-k", "default_top_k", type=int, help="Of a request that does not say.  [default: 8]"
    ),
    click.option(
        "--weight",
        "default_reward_weight",
        type=float,
        help="Of the reward, for a request that does not say.  [default: 1.0]",
    ),
    click.option(
        "--gate",
        "default_gate",
        type=float,
        metavar="NATS",
        help="Of a guided request that does not say.  [default: 0, none]",
    ),
    click.option(
        "--deadline-ms",
        "default_deadline_ms",
        type=int,
        help="Of a request that has none; 0: no deadline.  [default: 0]",
    ),
)


def check_digest(directory: Path, sha256: str | None) -> None:
    """Read an engine's files, with a progress bar, if it is to have this digest.

    Raises:
        EngineError: It has another.
    """
    if sha256 is not None:
        with byte_bar(None, "checking the engine") as advance:
            check_engine(directory, sha256, advance)
