"""Run every cell of the coverage table: ``python -m tools.families [CASE ...]``.

Writes docs/families.json, from which ``python -m tools.tables`` makes the tables. With names of
cases it runs those alone, and writes nothing.
"""

from __future__ import annotations

import importlib.metadata
import logging
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tqdm import tqdm

from otter_export.errors import UnsupportedError
from otter_export.manifest import EngineManifest
from tests.families.bases import CASES
from tests.families.cells import CELLS, reason_of
from tests.families.made import Made
from tools.family_results import (
    FAILED,
    NOT_RUN,
    PASSED,
    REFUSED,
    CaseResult,
    Outcome,
    Results,
)

#: All cases together; a process that hangs or dies must not be waited for.
LIMIT_SECONDS = 1200.0
LIBRARIES = ("mobius-onnx", "onnx_ir", "onnxruntime", "torch", "transformers", "tensorrt-rtx-cu13")


def main(arguments: Sequence[str]) -> int:
    """Run the cells; exit status 1 if one failed."""
    started = time.monotonic()
    names = [case.name for case in CASES if not arguments or case.name in arguments]
    found = {}
    with tqdm(total=len(names) * len(CELLS), unit="cell", leave=False) as bar:
        for result in _run_all(names, started):
            found[result.name] = result
            bar.set_description(result.name, refresh=False)
            bar.update(len(CELLS))
    seconds = time.monotonic() - started
    cases = tuple(found[name] for name in names)
    wrong = [(c.name, n, o) for c in cases for n, o in c.cells.items() if o.state == FAILED]
    for case, cell, outcome in wrong:
        print(f"{case}, {cell}: {outcome.reason}")
    states = [outcome.state for case in cases for outcome in case.cells.values()]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    print(f"{len(cases)} cases, {len(states)} cells in {seconds:.0f} s: {counts}")
    if not arguments:
        checks = {name: _sentence(name) for name in CELLS}
        cores = os.cpu_count() or 1
        Results("make families", round(seconds), cores, _versions(), checks, cases).save()
    return int(bool(wrong))


def run_case(name: str) -> CaseResult:
    """Run all cells of a case, in a folder that is removed afterwards."""
    case = next(case for case in CASES if case.name == name)
    with tempfile.TemporaryDirectory(prefix="families-") as root:
        made = Made(case, Path(root))
        cells = {cell: _outcome(made, cell) for cell in CELLS}
        family = made.checkpoint.base.family.name
        mends = EngineManifest.load(made.onnx()).mends
    return CaseResult(name, family, case.model_type, mends, cells)


def _outcome(made: Made, cell: str) -> Outcome:
    started = time.monotonic()

    def outcome(state: str, reason: str = "", **figures: float) -> Outcome:
        # Differences have two digits that mean something; counts are whole.
        rounded = {n: v if v == int(v) else float(f"{v:.2g}") for n, v in figures.items()}
        return Outcome(state, round(time.monotonic() - started, 1), rounded, reason)

    try:
        figures: Mapping[str, Any] = CELLS[cell](made)
        return outcome(PASSED, **figures)
    except UnsupportedError as error:
        return outcome(REFUSED, reason_of(made, error))
    except pytest.skip.Exception as error:
        return outcome(NOT_RUN, str(error))
    except Exception as error:  # whatever it is, the other cells are still worth knowing
        return outcome(FAILED, f"{type(error).__name__}: {reason_of(made, error)}")


def _run_all(names: Sequence[str], started: float) -> Iterator[CaseResult]:
    """The results of cases as they come, from a process for each core."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(os.cpu_count(), _quiet) as pool:
        results = pool.imap_unordered(run_case, names)
        for _ in names:
            yield results.next(LIMIT_SECONDS - (time.monotonic() - started))


def _quiet() -> None:
    """One thread for each process, and no notes of libraries between the figures."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    quiet: Any = transformers.logging
    quiet.set_verbosity_error()
    quiet.disable_progress_bar()
    logging.getLogger("onnx_ir").setLevel(logging.WARNING)


def _sentence(cell: str) -> str:
    """What a cell checks."""
    function = getattr(CELLS[cell], "func", CELLS[cell])
    return str(function.__doc__).partition("\n")[0]


def _versions() -> dict[str, str]:
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
