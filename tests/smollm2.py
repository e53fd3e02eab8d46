"""The real model, SmolLM2-135M-Instruct, under channels; a test skips where it is not at hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from examples.sentiment import material, recipe
from otter_export import insert
from otter_export.channel_options import ChannelOptions
from otter_export.checkpoint import Checkpoint
from otter_export.errors import OtterError
from tests import built, tiny


def prepared() -> material.Material:
    """The demo's material: the base and the rated snippets."""
    try:
        return material.prepare()
    except OtterError as error:
        pytest.skip(f"the demo's material is not at hand: {error}")


def random_checkpoint(directory: Path) -> Checkpoint:
    """An adapter with a small random channel and one value signal."""
    base = prepared().base
    tiny.write_checkpoint(directory, base=base, adapter=True, signals=(tiny.REWARD,), heads=3)
    built.randomize(directory, gain=0.2)
    return Checkpoint.open(directory)


def shipped_checkpoint(directory: Path, **shape: Any) -> Checkpoint:
    """An adapter with the channel that the demo ships, or with its tensors in another shape."""
    given = (*recipe.WIDTHS, *recipe.SHAPE)
    recipes = dict(zip(given[::2], given[1::2], strict=True))
    options = ChannelOptions(
        hidden_size=int(recipes["--hidden-size"]),
        intermediate_size=int(recipes["--intermediate-size"]),
        heads=int(recipes["--heads"]),
        initialization="copy",
        first_layer=int(recipes["--first-layer"]),
        attention=recipes["--attention"],
    )
    options = dataclasses.replace(options, **shape)
    base, trained = str(prepared().base), recipe.SHIPPED
    insert.plan(base, directory, options, adapter=True, replacements=trained).write()
    return Checkpoint.open(directory)
