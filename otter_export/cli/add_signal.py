"""``otter-export add-signal CKPT OUT``: more to predict from a channel that is trained."""

from __future__ import annotations

from pathlib import Path

import click

from otter_export import add_signal as adding
from otter_export.checkpoint import Checkpoint
from otter_export.cli.insert import SignalType
from otter_export.cli.progress import byte_bar
from otter_export.files import steady
from otter_export.signals import Signal


@click.command()
@click.argument("ckpt", type=click.Path(path_type=Path), metavar="CKPT")
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT")
@click.option(
    "--signal",
    "signals",
    type=SignalType(),
    multiple=True,
    required=True,
    help="What the channel is to predict too; repeatable.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--force", is_flag=True, help="Replace an existing checkpoint, after success.")
def add_signal(ckpt: Path, out: Path, signals: tuple[Signal, ...], seed: int, force: bool) -> None:
    """Add untrained signals to the channel of CKPT, and write the checkpoint OUT.

    What CKPT has keeps its bits, so its signals predict what they did. Train the new ones with
    otter-export train OUT --signal NAME --freeze channel, and they still do.
    """
    click.get_current_context().with_resource(steady(ckpt, "is being trained"))
    plan = adding.plan(Checkpoint.open(ckpt), out, signals, seed=seed, force=force)
    with byte_bar(plan.total_bytes, "writing") as progress:
        plan.write(progress)
    names = ", ".join(f"{s.name} ({s.kind}, {s.activation})" for s in plan.config.signals)
    click.echo(f"wrote {out}: signals {names}")
