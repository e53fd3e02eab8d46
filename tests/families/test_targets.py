"""L2: every base is built for every target in every precision, and verified."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.families.cells import TARGET_CELLS


@pytest.mark.parametrize("cell", TARGET_CELLS)
def test_cell(cell: str, check: Callable[[str], None]) -> None:
    check(cell)
