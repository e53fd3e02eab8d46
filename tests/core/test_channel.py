"""L0: where a channel of each shape has tensors: a shape leaves some out and changes no other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from otter_export.base_model import BaseModel
from otter_export.channel import base_heads, check_widths, expected_tensors
from otter_export.config import OtterConfig
from otter_export.initialization import initial_tensors
from tests.families import bases

#: The tiny bases have two layers.
SHAPES = [(n, attention) for n in (0, 1, 2) for attention in ("own", "shared")]
CHANNEL = OtterConfig(16, 24, 2, 1, 16)


def shaped(first_layer: int, attention: str) -> OtterConfig:
    return dataclasses.replace(CHANNEL, first_layer=first_layer, attention=attention)


def names(base: BaseModel, first_layer: int, attention: str) -> set[str]:
    return set(expected_tensors(shaped(first_layer, attention), base))


def test_the_contract_names_for_llama(tiny_llama: Path) -> None:
    base = BaseModel.open(tiny_llama)
    everything = names(base, 0, "own")
    assert "model.embed_tokens.otter.projection" in everything
    weights = {n for n in everything if ".q_proj." in n or ".k_proj." in n}
    assert len(weights) == 2 * 2 * 2
    assert names(base, 0, "shared") == everything - weights
    first = {n for n in everything if n.startswith(("model.layers.0.", "model.embed_tokens."))}
    assert names(base, 1, "own") == everything - first | {"model.layers.1.otter.projection"}
    assert names(base, 2, "own") == names(base, 2, "shared")
    assert names(base, 2, "own") == {
        "model.norm.otter.projection",
        "model.norm.otter.weight",
        "signals.reward.weight",
        "signals.reward.bias",
    }
    assert expected_tensors(shaped(2, "own"), base)["model.norm.otter.projection"] == (16, 64)


@pytest.mark.parametrize("case", bases.CASES, ids=lambda case: case.name)
def test_a_shape_leaves_tensors_out_and_adds_one_projection(
    case: bases.Case, tmp_path: Path
) -> None:
    base = BaseModel.open(bases.write_base(case, tmp_path))
    d = base.dimensions
    config = OtterConfig(16, 16, 1, 1, d.head_dim)
    everything = expected_tensors(config, base)
    for first_layer in range(d.num_hidden_layers + 1):
        for attention in ("own", "shared"):
            one = dataclasses.replace(config, first_layer=first_layer, attention=attention)
            found = expected_tensors(one, base)
            added = set(found) - set(everything)
            assert len(added) == (1 if first_layer else 0)
            assert all(name.endswith(".otter.projection") for name in added)
            assert {n: s for n, s in found.items() if n not in added}.items() <= everything.items()


@pytest.mark.parametrize(("first_layer", "attention"), SHAPES)
def test_copies_are_the_same_in_every_shape(
    first_layer: int, attention: str, tiny_llama: Path
) -> None:
    base = BaseModel.open(tiny_llama)
    whole = {name: make() for name, _, make in initial_tensors(CHANNEL, base)}
    made = {n: make() for n, _, make in initial_tensors(shaped(first_layer, attention), base)}
    for name, values in made.items():
        if name.startswith("signals."):
            continue  # drawn, by their position
        expected = whole.get(name, np.eye(64, dtype=np.float32)[::4])
        np.testing.assert_array_equal(values, expected)


def test_extra_heads_stand_for_the_first_of_each_group(tiny_llama: Path) -> None:
    d = dataclasses.replace(
        BaseModel.open(tiny_llama).dimensions, num_attention_heads=8, num_key_value_heads=2
    )
    for heads, key_values, expected in [
        (4, 1, [0, 1, 2, 3]),
        (8, 2, list(range(8))),
        (2, 2, [0, 4]),
        (4, 2, [0, 1, 4, 5]),
    ]:
        config = OtterConfig(16, 24, heads, key_values, 16)
        assert base_heads(config, d).tolist() == expected


def test_shapes_that_do_not_fit_the_base(tiny_llama: Path) -> None:
    d = BaseModel.open(tiny_llama).dimensions
    assert check_widths(shaped(2, "shared"), d) == []
    (problem,) = check_widths(shaped(3, "own"), d)
    assert problem == (
        "first_layer is 3, and the base has 2 layers; 2 is a probe on its last state"
    )
    wide = OtterConfig(16, 24, 8, 8, 16, attention="shared")
    assert check_widths(wide, d) == [
        f"8 key/value heads cannot share the attention of a base that has {d.num_key_value_heads}"
    ]


def test_a_checkpoint_of_each_shape_opens(tiny_llama: Path, tmp_path: Path) -> None:
    from otter_export.channel_options import ChannelOptions
    from otter_export.checkpoint import Checkpoint
    from otter_export.errors import CheckpointError
    from otter_export.insert import plan

    for first_layer, attention in SHAPES:
        path = tmp_path / f"{first_layer}-{attention}"
        plan(
            str(tiny_llama), path, ChannelOptions(first_layer=first_layer, attention=attention)
        ).write()
        config = Checkpoint.open(path).config
        assert (config.first_layer, config.attention) == (first_layer, attention)
    data = (tmp_path / "1-shared" / "otter_config.json").read_text(encoding="utf-8")
    (tmp_path / "1-shared" / "otter_config.json").write_text(
        data.replace('"first_layer": 1', '"first_layer": 2'), encoding="utf-8"
    )
    with pytest.raises(CheckpointError, match=r"model\.norm\.otter\.projection is missing"):
        Checkpoint.open(tmp_path / "1-shared")
