"""L0: pieces of the initialisation ``probe``; `tests/families/test_probe.py` has ``n' = R n``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export.checkpoint import Checkpoint
from otter_export.errors import ConfigError
from otter_export.probe import orthonormal
from tests import tiny


@given(st.integers(0, 4), st.integers(0, 4), st.integers(0, 5), st.integers(0, 99))
def test_rows_are_orthonormal_and_span_the_directions(
    count: int, more: int, beyond: int, seed: int
) -> None:
    size = max(count + more, 1)
    directions = np.random.default_rng(seed).standard_normal((count, size + beyond)) * 1e-3
    rows = orthonormal(directions, size, seed)
    assert rows.shape == (size, size + beyond) and rows.dtype == np.float32
    # float32, sums of up to 13 products.
    np.testing.assert_allclose(rows @ rows.T, np.eye(size), atol=3e-6)
    np.testing.assert_allclose(directions @ rows.T @ rows, directions, atol=3e-8)


def test_the_map_is_drawn_from_the_seed(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base")

    def made(name: str, seed: int) -> dict[str, np.ndarray]:
        path = tiny.write_checkpoint(tmp_path / name, base=base, initialization="probe", seed=seed)
        opened = Checkpoint.open(path)
        assert (opened.config.initialization, opened.config.version) == ("probe", 2)
        return {n: opened.float32(n) for n in opened.tensors}

    one, same, other = made("one", 1), made("same", 1), made("other", 2)
    assert all(np.array_equal(one[n], same[n]) for n in one)
    start = "model.embed_tokens.otter.projection"
    assert not np.allclose(one[start], other[start])
    written = [n for n in one if n.endswith("_proj.otter.from_channel")]
    assert written and all(not one[n].any() for n in written)


def test_a_map_has_no_more_rows_than_the_state_has_units(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hidden size 65 > 64; use --init normal"):
        tiny.write_checkpoint(tmp_path / "ck", initialization="probe", hidden_size=65)
