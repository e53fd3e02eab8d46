"""``otter-export reshape CKPT OUT``: leave out what training never changed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from tqdm import tqdm

from otter_export import config as config_file
from otter_export import reshape as reshaping
from otter_export.channel import shape_words
from otter_export.checkpoint import Checkpoint
from otter_export.cli.progress import DELAY_SECONDS, byte_bar
from otter_export.cli.table import human_bytes, human_count
from otter_export.errors import CheckpointError, VerificationError
from otter_export.evaluation.parity import Difference, difference
from otter_export.evaluation.prompts import PROMPTS
from otter_export.files import steady
from otter_export.modeling.otter_model import load_reference
from otter_export.modeling.tokenization import load_tokenizer

#: In units of a signal's spread. A bfloat16 copy rounds by 4e-3 where the base may hold float32;
#: what is no copy differs by its whole spread.
_LIMIT = 0.1


@click.command()
@click.argument("ckpt", type=click.Path(path_type=Path), metavar="CKPT")
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT")
@click.option(
    "--first-layer",
    type=click.IntRange(0),
    help="Layer that the channel shall begin at.  [default: the last that is exact]",
)
@click.option(
    "--attention",
    type=click.Choice(config_file.ATTENTIONS),
    help="Queries and keys of its own, or the base's.  [default: shared, if that is exact]",
)
@click.option(
    "--prompt", "prompts", multiple=True, metavar="TEXT", help="For the parity; may be repeated."
)
@click.option("--force", is_flag=True, help="Replace an existing checkpoint, after success.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def reshape(
    ckpt: Path,
    out: Path,
    first_layer: int | None,
    attention: str | None,
    prompts: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Give the channel of CKPT a cheaper shape that computes the same, and write it to OUT.

    Layers below the first tensor that was trained, and queries and keys that were not, are copies
    of the base: the channel begins behind them, and shares the base's attention. Both are run in
    torch before OUT gets its name, and the largest difference of each signal is printed.
    """
    started = time.monotonic()
    click.get_current_context().with_resource(steady(ckpt, "is being trained"))
    checkpoint = Checkpoint.open(ckpt)
    token_ids = _token_ids(checkpoint, prompts or PROMPTS)
    size = sum(info.nbytes for info in checkpoint.tensors.values())
    with byte_bar(size, "comparing") as progress:
        plan = reshaping.plan(
            checkpoint,
            out,
            first_layer=first_layer,
            attention=attention,
            force=force,
            progress=progress,
        )
    parity: dict[str, Difference] = {}

    def check(written: Path) -> None:
        """A directory that is no copy of CKPT's channel does not become OUT."""
        parity.update(_parity(checkpoint, Checkpoint.open(written), token_ids))
        worst = max(parity, key=lambda name: parity[name].relative)
        if not parity[worst].relative <= _LIMIT:
            raise VerificationError(
                f"{out} is not written: the signal {worst} would differ by "
                f"{parity[worst].relative:.3g} of its spread, more than rounding ({_LIMIT:g})"
            )

    with byte_bar(plan.total_bytes, "writing") as progress:
        plan.write(progress, check)
    written = Checkpoint.open(out)
    report = {
        "checkpoint": str(ckpt),
        "out": str(out),
        "shapes": [_shape(checkpoint), _shape(written)],
        "bytes": plan.total_bytes,
        "seconds": round(time.monotonic() - started, 1),
        "parity": {n: {"maximum": p.maximum, "relative": p.relative} for n, p in parity.items()},
    }
    click.echo(json.dumps(report, indent=1) if as_json else _text(checkpoint, written, parity))


def _token_ids(checkpoint: Checkpoint, texts: Sequence[str]) -> list[list[int]]:
    """Tokens of some texts, each cut to what the base has positions for.

    Raises:
        CheckpointError: The tokenizer cannot be read, or gives a token that the embedding has not.
    """
    directory, dimensions = checkpoint.base.directory, checkpoint.base.dimensions
    tokenizer, most = load_tokenizer(directory), dimensions.max_position_embeddings
    rows = [tokenizer.encode(text)[:most] or [0] for text in texts]
    largest = max(map(max, rows))
    if largest >= dimensions.vocab_size:
        raise CheckpointError(
            f"a prompt has token id {largest}, and the embedding of {directory} has "
            f"{dimensions.vocab_size} rows; give other texts with --prompt"
        )
    return rows


def _parity(
    one: Checkpoint, other: Checkpoint, token_ids: Sequence[Sequence[int]]
) -> dict[str, Difference]:
    """How far each signal of the second is from the first's, over all tokens of some texts.

    Raises:
        CheckpointError: The first's own are no numbers, so that nothing can be said.
    """
    expected = _signals(one, token_ids)
    for name, values in expected.items():
        if not np.isfinite(values).all():
            raise CheckpointError(
                f"the signal {name} of {one.directory} is NaN or infinite, so nothing can be "
                "compared with it; train the channel anew"
            )
    found = _signals(other, token_ids)
    return {name: difference(found[name], expected[name]) for name in expected}


@torch.no_grad()
def _signals(checkpoint: Checkpoint, token_ids: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Every signal at every token of some texts, by name, ``[tokens, ...]``."""
    model = load_reference(checkpoint)
    rows: list[Mapping[str, torch.Tensor]] = []
    for ids in tqdm(token_ids, "running", delay=DELAY_SECONDS, leave=False, unit="text"):
        rows.append(model(torch.tensor([ids]), compute_logits=False).signals)
    return {name: np.concatenate([row[name][0].numpy() for row in rows]) for name in rows[0]}


def _shape(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "first_layer": checkpoint.config.first_layer,
        "attention": checkpoint.config.attention,
        "parameters": sum(info.elements for info in checkpoint.tensors.values()),
    }


def _text(before: Checkpoint, after: Checkpoint, parity: dict[str, Difference]) -> str:
    lines = []
    for checkpoint in (before, after):
        size = sum(info.nbytes for info in checkpoint.tensors.values())
        parameters = human_count(sum(info.elements for info in checkpoint.tensors.values()))
        words = shape_words(checkpoint.config, checkpoint.base.dimensions.num_hidden_layers)
        lines.append(
            f"{checkpoint.directory}: {words}; {parameters} parameters, {human_bytes(size)}"
        )
    lines += [
        f"{name} differs by at most {p.maximum:.3g}, {p.relative:.3g} of its spread"
        for name, p in parity.items()
    ]
    return "\n".join(lines)
