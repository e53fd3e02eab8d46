"""L2: the graphs that TensorRT is given and the models that TensorRT-LLM loads, of every base."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.families.cells import TENSORRT_CELLS
from tests.families.selections import EVERY_MODEL_TYPE

pytestmark = EVERY_MODEL_TYPE


@pytest.mark.parametrize("cell", TENSORRT_CELLS)
def test_cell(cell: str, check: Callable[[str], None]) -> None:
    check(cell)
