"""L2: every base is built for ONNX Runtime in every precision, and verified."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.families.cells import ONNX_CELLS
from tests.families.selections import EVERY_CASE

pytestmark = EVERY_CASE


@pytest.mark.parametrize("cell", ONNX_CELLS)
def test_cell(cell: str, check: Callable[[str], None]) -> None:
    check(cell)
