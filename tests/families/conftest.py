"""The cases of the coverage table, and what a cell of one must come to."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from otter_export.errors import UnsupportedError
from tests.families.cells import CELLS, reason_of
from tests.families.made import Made
from tools.family_results import REFUSED, Results


@pytest.fixture(scope="module")
def made(request: pytest.FixtureRequest) -> Iterator[Made]:
    """A case's base and engines, made when they are needed and removed behind its last cell.

    Modules say of which cases, by `tests.families.selections`.
    """
    with tempfile.TemporaryDirectory(prefix="families-") as root:
        yield Made(request.param, Path(root))


@pytest.fixture(scope="session")
def results() -> Results:
    """docs/families.json."""
    return Results.load()


@pytest.fixture
def check(made: Made, results: Results) -> Callable[[str], None]:
    """``check(cell)``: a cell passes, or is refused with the reason that the table has."""

    def run(cell: str) -> None:
        recorded = results.outcome(made.case.name, cell)
        if recorded.state != REFUSED:
            CELLS[cell](made)
            return
        with pytest.raises(UnsupportedError) as caught:
            CELLS[cell](made)
        assert reason_of(made, caught.value) == recorded.reason

    return run
