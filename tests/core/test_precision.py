"""L0: formats of weights fit the widths of a base."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export.precision import ONNX_RUNTIME, TENSORRT, WeightFormat


@pytest.mark.parametrize(
    ("widths", "block"),
    [
        ({576, 1536}, 64),  # SmolLM2-135M: 576 is nine times 64
        ({960, 2560}, 64),
        ({2048, 8192}, 128),
        ({768, 3072}, 128),
        ({576, 1500}, 128),  # 64 divides 1500 no better
    ],
)
def test_blocks_that_divide_all_widths(widths: set[int], block: int) -> None:
    chosen = ONNX_RUNTIME["cpu"]["int8"].dividing(widths)
    stored = (chosen.projections, chosen.inner, chosen.head)
    assert [one and one.block for one in stored] == [block] * 3
    assert chosen.name == "int8" and chosen.half == "embedding"


@given(st.sets(st.integers(1, 4096), min_size=1), st.sampled_from([64, 128, 256]))
def test_a_block_is_halved_where_that_ends_padding(widths: set[int], block: int) -> None:
    stored = WeightFormat(8, block)
    found = stored.dividing(widths).block
    halves = all(width % (block // 2) == 0 for width in widths)
    padded = any(width % block for width in widths)
    assert found == (block // 2 if halves and padded else block)


def test_other_formats_stay() -> None:
    for precision in (ONNX_RUNTIME["cpu"]["fp32"], *TENSORRT.values()):
        assert precision.dividing({576}) == precision
    int4 = ONNX_RUNTIME["cpu"]["int4"].dividing({576, 1536})
    assert int4.projections == ONNX_RUNTIME["cpu"]["int4"].projections
    assert int4.head is not None and int4.head.block == 64
