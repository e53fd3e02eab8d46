"""L1: the kernel in Triton's interpreter equals float64 within what rounding explains."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="OpenAI Triton, the kernel language, is not installed")
pytest.importorskip("torch", reason="torch is not installed")

from otter_export.plugins.cubin_index import DTYPES
from otter_export.plugins.tiles import TILES, UNALIGNED_TILES, Tile

ALL_TILES = (*TILES, *UNALIGNED_TILES)
Run = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs one case in the interpreter's process."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("interpreter.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None and process.stdout is not None
    stdin, stdout = process.stdin, process.stdout

    def ask(case: dict[str, Any]) -> dict[str, Any]:
        stdin.write(json.dumps(case) + "\n")
        stdin.flush()
        answer = stdout.readline()
        assert answer, f"the interpreter's process ended at {case}"
        result: dict[str, Any] = json.loads(answer)
        return result

    yield ask
    stdin.close()
    process.wait(timeout=30)


def _check(
    run: Run, shape: tuple[int, ...], tile: Tile, dtype: str, *, bias: bool, gap: int = 0
) -> None:
    case = {
        "shape": shape,
        "tile": dataclasses.asdict(tile),
        "dtype": dtype,
        "bias": bias,
        "gap": gap,
        "seed": sum(shape),
    }
    result = run(case)
    # 1 is the bound of a float32 sum that is rounded once; a second rounding would exceed it.
    assert result["y"] <= 1, (case, result)
    assert result["y_channel"] <= 1, (case, result)
    assert result["around_is_intact"], case


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", ALL_TILES, ids=lambda tile: str(tile.name))
def test_every_tile_at_decode_sizes(run: Run, tile: Tile, dtype: str) -> None:
    # One row, a full tile of rows, and one row more than that.
    for rows in (1, tile.rows, tile.rows + 1):
        _check(run, (rows, 192, 64, 96, 48), tile, dtype, bias=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "bias"),
    [
        ((1, 1, 1, 1, 1), True),
        ((2, 257, 3, 17, 1), True),  # one more than a tile, odd everywhere
        ((32, 129, 127, 33, 65), False),
        ((33, 300, 64, 100, 33), False),
        ((70, 40, 8, 24, 8), True),  # three tiles of rows
        ((5, 8, 520, 8, 16), True),  # a channel wider than the base
    ],
    ids=str,
)
def test_odd_widths_and_many_rows(run: Run, shape: tuple[int, ...], bias: bool, dtype: str) -> None:
    _check(run, shape, TILES[0], dtype, bias=bias)
    _check(run, shape, UNALIGNED_TILES[0], dtype, bias=bias)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_that_lie_apart(run: Run, dtype: str) -> None:
    # As in the torch reference, where x and x' are columns of one tensor.
    _check(run, (18, 48, 16, 40, 24), TILES[0], dtype, bias=True, gap=5)


def test_a_real_layer(run: Run) -> None:
    # SmolLM2-135M's key projection: d = 576, d' = 64, 3 heads of 64, and 1 of the channel.
    _check(run, (8, 576, 64, 192, 64), TILES[1], "float16", bias=False)


@given(
    rows=st.integers(1, 36),
    widths=st.tuples(*4 * [st.integers(1, 100)]),
    tile=st.sampled_from(ALL_TILES),
    dtype=st.sampled_from(DTYPES),
    bias=st.booleans(),
    gap=st.sampled_from([0, 3, 64]),
)
@settings(max_examples=30)
def test_any_shape(
    run: Run, rows: int, widths: tuple[int, ...], tile: Tile, dtype: str, bias: bool, gap: int
) -> None:
    _check(run, (rows, *widths), tile, dtype, bias=bias, gap=gap)
