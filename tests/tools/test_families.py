"""L0: docs/families.json has a result of every cell of every family, and the tables are its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from otter_export.families import FAMILIES
from tests.families.bases import CASES
from tests.families.cells import CELLS
from tools import family_tables
from tools.family_results import FAILED, PASSED, REFUSED, Outcome, Results


@pytest.fixture(scope="module")
def results() -> Results:
    return Results.load()


def problems(results: Results) -> Iterator[str]:
    """What of the table has no result, or no good one."""
    names = {case.name for case in CASES}
    yield from (f"{case.name} is no case" for case in results.cases if case.name not in names)
    for name in FAMILIES:
        cases = [case for case in results.cases if case.family == name]
        types = set(FAMILIES.load(name).model_types) - {case.model_type for case in cases}
        yield from (f"{name}, {model_type} has no result" for model_type in sorted(types))
    for case in CASES:
        for cell in CELLS:
            try:
                state = results.outcome(case.name, cell).state
            except LookupError as error:
                yield str(error)
                continue
            if state != PASSED and not (state == REFUSED and cell.startswith("trtllm ")):
                yield f"{case.name}, {cell}: {state}"


def test_every_cell_has_a_result(results: Results) -> None:
    assert list(problems(results)) == [], "run: make families"
    assert list(results.checks) == list(CELLS)


def test_a_family_without_results_is_missed(results: Results) -> None:
    others = tuple(case for case in results.cases if case.family != "gemma2")
    found = list(problems(dataclasses.replace(results, cases=others)))
    assert found[0] == "gemma2, gemma2 has no result"
    assert found[1] == "families.json has no result of gemma2, insert: run make families"
    assert len(found) == 1 + len(CELLS)


def test_a_cell_that_does_not_pass_is_missed(results: Results) -> None:
    spoiled = _with(results, "granite", "onnx int8", Outcome(FAILED, 1.0, reason="it differs"))
    assert list(problems(spoiled)) == ["granite, onnx int8: failed"]
    row = next(r for r in family_tables.summary(spoiled).splitlines() if r.startswith("| granite "))
    assert "| fp32, fp16, int4 | fp16, bf16, int8, int4 | no |" in row


def test_a_case_that_a_target_refuses_is_named(results: Results) -> None:
    refused = Outcome(REFUSED, 0.1, reason="ck/config.json: windows are not supported")
    changed = _with(results, "phi3-window", "onnx int4", refused)
    table = family_tables.summary(changed)
    row = next(r for r in table.splitlines() if r.startswith("| phi3 "))
    assert "| fp32, fp16, int8, int4 (not phi3-window) |" in row
    assert "| phi3-window | `--target onnx`: windows are not supported |" in family_tables.page(
        changed
    )


def test_results_are_read_as_they_were_written(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path / "families.json")
    assert Results.load(tmp_path / "families.json") == results


def _with(results: Results, name: str, cell: str, outcome: Outcome) -> Results:
    """The results with another outcome of one cell."""
    cases = tuple(
        dataclasses.replace(case, cells={**case.cells, cell: outcome})
        if case.name == name
        else case
        for case in results.cases
    )
    return dataclasses.replace(results, cases=cases)
