"""L0: initial tensors against the formulas of the three initialisations."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from otter_export.base_model import BaseModel
from otter_export.channel import expected_tensors
from otter_export.config import OtterConfig
from otter_export.errors import ConfigError
from otter_export.family import Space, channel_width
from otter_export.initialization import NORMAL_STD, copied_rows, evenly_spaced, initial_tensors
from tests import tiny

HEADS = {"llama": (2, 1), "qwen2": (2, 1), "gpt2": (2, 2)}


def make(
    family: str, directory: Path, initialization: str, seed: int = 0, **changes: object
) -> tuple[OtterConfig, BaseModel, dict[str, np.ndarray]]:
    base = BaseModel.open(tiny.write_base(directory, family))
    heads, key_values = HEADS[family]
    fields: dict[str, object] = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_attention_heads": heads,
        "num_key_value_heads": key_values,
        "head_dim": 16,
        "initialization": initialization,
    }
    config = OtterConfig(**{**fields, **changes})  # type: ignore[arg-type]
    made = {name: build() for name, _, build in initial_tensors(config, base, seed)}
    return config, base, made


@pytest.mark.parametrize("initialization", ["copy", "normal", "random"])
@pytest.mark.parametrize("embedding", ["projection", "table"])
def test_every_expected_tensor_is_made(
    family: str, initialization: str, embedding: str, tmp_path: Path
) -> None:
    config, base, made = make(family, tmp_path, initialization, embedding=embedding)
    assert {n: v.shape for n, v in made.items()} == expected_tensors(config, base)
    assert {v.dtype for v in made.values()} == {np.dtype(np.float32)}


def test_copy_takes_fixed_index_sets(family: str, tmp_path: Path) -> None:
    config, base, made = make(family, tmp_path, "copy")
    hidden = np.arange(16) * 4  # evenly spaced in 64
    inner = base.dimensions.intermediate_size
    neurons = np.arange(24) * inner // 24
    rows = {
        Space.HIDDEN: hidden,
        Space.INNER: neurons,
        Space.QUERY: np.arange(config.num_attention_heads * 16),
        Space.KEY: np.arange(config.num_key_value_heads * 16),
        Space.VALUE: np.arange(config.num_key_value_heads * 16),
    }
    for space, expected in rows.items():
        np.testing.assert_array_equal(copied_rows(config, base, space), expected)
    for site in base.sites.projections:
        # A = W[out-set, :] and B = 0.
        weight = base.projection(site)
        np.testing.assert_array_equal(
            made[f"{site.name}.otter.from_base"], weight[rows[site.writes]]
        )
        assert not made[f"{site.name}.otter.from_channel"].any()
        bias = base.projection_bias(site)
        if bias is not None:
            np.testing.assert_array_equal(made[f"{site.name}.otter.bias"], bias[rows[site.writes]])
    for name in (norm.name for norm in base.sites.norms):
        gamma = base.float32(f"{name}.weight")
        np.testing.assert_array_equal(made[f"{name}.otter.weight"], gamma[hidden])
    for name, _ in base.sites.embeddings:
        identity = np.eye(64, dtype=np.float32)
        np.testing.assert_array_equal(made[f"{name}.otter.projection"], identity[hidden])


def test_copied_tables_are_columns_of_the_base(tmp_path: Path) -> None:
    _, base, made = make("gpt2", tmp_path, "copy", embedding="table")
    for name in ("transformer.wte", "transformer.wpe"):
        expected = base.float32(f"{name}.weight")[:, ::4]
        np.testing.assert_array_equal(made[f"{name}.otter.table"], expected)


def test_a_channel_wider_than_its_base_cannot_be_copied(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="hidden 80 > 64; use --init normal or smaller widths"):
        make("llama", tmp_path, "copy", hidden_size=80)
    make("llama", tmp_path, "normal", hidden_size=80)


def test_indices_are_distinct_and_cover_the_range() -> None:
    for size in range(1, 40):
        for count in range(1, size + 1):
            indices = evenly_spaced(count, size)
            assert len(set(indices.tolist())) == count
            assert indices[0] == 0 and indices[-1] < size


def test_drawn_values_have_the_stated_distribution(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj.otter.from_base"  # [24, 64]: 1536 values
    _, _, normal = make("llama", tmp_path, "normal")
    # The standard error of a standard deviation over n values is sigma / sqrt(2 n): 2 % here.
    assert normal[name].std() == pytest.approx(NORMAL_STD, rel=0.1)
    _, _, uniform = make("llama", tmp_path, "random")
    limit = 1 / np.sqrt(64)
    assert limit * 0.99 < np.abs(uniform[name]).max() <= limit
    assert uniform[name].std() == pytest.approx(limit / np.sqrt(3), rel=0.1)
    for made in (normal, uniform):
        assert (made["model.norm.otter.weight"] == 1).all()
        assert not made["signals.reward.bias"].any()
        assert made["signals.reward.weight"].any()


def test_values_depend_on_the_seed_and_on_nothing_else(tmp_path: Path) -> None:
    config, base, first = make("llama", tmp_path, "normal", seed=5)
    # Made in another order, one by one.
    for name, _, build in reversed(list(initial_tensors(config, base, 5))):
        np.testing.assert_array_equal(build(), first[name])
    _, _, other = make("llama", tmp_path, "normal", seed=6)
    name = "model.layers.0.mlp.up_proj.otter.from_base"
    assert (first[name] != other[name]).any()
    drawn = [v.tobytes() for n, v in first.items() if n.endswith("from_base")]
    assert len(set(drawn)) == len(drawn)


def test_widths_of_the_spaces() -> None:
    config = OtterConfig(16, 24, 4, 2, 8)
    assert {space: channel_width(config, space) for space in Space} == {
        Space.HIDDEN: 16,
        Space.INNER: 24,
        Space.QUERY: 32,
        Space.KEY: 16,
        Space.VALUE: 16,
    }
