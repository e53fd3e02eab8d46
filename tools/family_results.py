"""The results of ``make families``, as docs/families.json holds them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

PATH = Path(__file__).resolve().parents[1] / "docs" / "families.json"
PASSED, FAILED, REFUSED, NOT_RUN = "passed", "failed", "refused", "not run"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What one cell of one case came to.

    Args:
        state: `PASSED`, `FAILED`, `REFUSED` or `NOT_RUN`.
        seconds: What it took.
        figures: What it measured.
        reason: What was said where it did not pass.
    """

    state: str
    seconds: float
    figures: Mapping[str, float] = dataclasses.field(default_factory=dict)
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class CaseResult:
    """The cells of one base.

    Args:
        name: Of the case.
        family: Its family.
        model_type: As its config.json has it.
        mends: What was put right in its graph.
        cells: Outcome by name of the cell.
    """

    name: str
    family: str
    model_type: str
    mends: tuple[str, ...]
    cells: Mapping[str, Outcome]


@dataclasses.dataclass(frozen=True)
class Results:
    """All of a run.

    Args:
        command: What made them.
        seconds: What the run took.
        cores: Of the machine.
        versions: Of the libraries, by name.
        checks: What each cell checks, by name.
        cases: In order.
    """

    command: str
    seconds: float
    cores: int
    versions: Mapping[str, str]
    checks: Mapping[str, str]
    cases: tuple[CaseResult, ...]

    @classmethod
    def load(cls, path: Path = PATH) -> Results:
        """Read them."""
        data = json.loads(path.read_text(encoding="utf-8"))
        cases = []
        for case in data["cases"]:
            cells = {name: Outcome(**cell) for name, cell in case["cells"].items()}
            cases.append(CaseResult(**{**case, "mends": tuple(case["mends"]), "cells": cells}))
        return cls(**{**data, "cases": tuple(cases)})

    def save(self, path: Path = PATH) -> None:
        """Write them."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n", encoding="utf-8")

    def outcome(self, case: str, cell: str) -> Outcome:
        """One cell.

        Raises:
            LookupError: It has no result; says how to get it.
        """
        for one in self.cases:
            if one.name == case and cell in one.cells:
                return one.cells[cell]
        raise LookupError(f"{PATH.name} has no result of {case}, {cell}: run make families")
