"""``otter-export import SOURCE CKPT``: a head that others trained, as a channel, exactly."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path

import click

from otter_export.cli.progress import byte_bar
from otter_export.cli.table import human_bytes
from otter_export.importing.backbone import compare
from otter_export.importing.plan import Import
from otter_export.importing.plan import plan as import_plan
from otter_export.importing.source import HeadOptions
from otter_export.safetensors_io import WEIGHT_DTYPES
from otter_export.signals import SIGNALS


@click.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("ckpt", type=click.Path(path_type=Path))
@click.option(
    "--base",
    "base_name",
    metavar="BASE",
    help="Directory or hub id of the frozen base.  [default: what SOURCE names, else SOURCE]",
)
@click.option("--name", help="Of the signal.  [default: reward; of draft heads: drafts]")
@click.option("--label", metavar="NAME", help="Of a classifier: the label whose score it is.")
@click.option(
    "--probability", is_flag=True, help="Of two labels: that label's probability, not its score."
)
@click.option(
    "--activation",
    type=click.Choice(SIGNALS.load("value").activations),
    default="identity",
    help="Behind a score; tanh and sigmoid give it bounds, by which guided decoding prunes.  "
    "[default: identity, the score as it is]",
)
@click.option(
    "--dtype",
    type=click.Choice(list(WEIGHT_DTYPES)),
    default="F32",
    show_default=True,
    help="Of the inserted tensors as stored.",
)
@click.option("--adapter", is_flag=True, help="Name the base in the checkpoint; do not copy it.")
@click.option("--parity/--no-parity", default=True, help="Compare scores with transformers.")
@click.option("--force", is_flag=True, help="Replace an existing checkpoint, after success.")
def import_head(
    source: Path,
    ckpt: Path,
    base_name: str | None,
    name: str | None,
    label: str | None,
    probability: bool,
    activation: str,
    dtype: str,
    adapter: bool,
    parity: bool,
    force: bool,
) -> None:
    """Import the head of SOURCE, trained on a frozen base, as the checkpoint CKPT.

    SOURCE is a directory with a value head (TRL, LlamaFactory), a sequence or token classifier
    (transformers) or Medusa heads, or a safetensors file of heads alone.
    """
    started = time.monotonic()
    work = import_plan(
        source,
        ckpt,
        base_name=base_name,
        options=HeadOptions(name, activation, label, probability),
        dtype=dtype,
        adapter=adapter,
        force=force,
    )
    signal, compared = work.head.signal, _compared(work)
    click.echo(
        f"{work.format.name} of {source}, on the last state of {work.base.directory} "
        f"({work.base.family.name})\n"
        f"signal {signal.name} ({signal.kind}, {signal.activation}), d'={len(work.head.probe.rows)}"
    )
    click.echo(compared)
    for note in work.insertion.notes:
        click.echo(f"note: {note}")
    with byte_bar(work.insertion.total_bytes, "writing") as progress:
        work.insertion.write(progress, lambda directory: _check(work, directory, parity))
    total = human_bytes(work.insertion.total_bytes)
    click.echo(f"wrote {ckpt}: {total} in {time.monotonic() - started:.1f} s")


def _compared(work: Import) -> str:
    """What the comparison of the backbones says.

    Raises:
        CheckpointError: The source's was trained too.
    """
    if work.on_itself:
        return "backbone: the source's own is the base"
    total = sum(info.nbytes for info in work.base.parameters.values())
    with byte_bar(total, "comparing") as progress:
        found = compare(work.base, work.source, progress)
    if not found.compared:
        return "backbone: the source has heads alone; they fit the base that they were trained on"
    found.check(work.source, work.base)
    without = f"; {', '.join(found.absent[:3])} is the base's alone" if found.absent else ""
    return f"backbone: {found.compared} tensors equal the base's{without}"


def _check(work: Import, directory: Path, wanted: bool) -> None:
    """Compare scores before the checkpoint gets its name."""
    if not wanted:
        return
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        click.echo("parity: not compared; it needs torch and transformers: the extra train")
        return
    from otter_export.evaluation.import_parity import import_parity

    found = import_parity(work, directory)
    found.check()
    click.echo(
        f"parity: {found.scores} scores of {work.source.path} in transformers, up to "
        f"{found.largest:.3g}; largest difference {found.difference:.1e}"
    )
