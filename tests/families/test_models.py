"""L2, L4: every base is inserted into, trained and decoded: the cells that no target matters to."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.families.cells import MODEL_CELLS
from tests.families.selections import EVERY_CASE

pytestmark = EVERY_CASE


@pytest.mark.parametrize("cell", MODEL_CELLS)
def test_cell(cell: str, check: Callable[[str], None]) -> None:
    check(cell)
