"""L1: docs/graph.md lists the passes that the pipeline runs, in order, and all rules."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from otter_export.checkpoint import Checkpoint
from otter_export.graph.pipeline import onnxruntime, tensorrt
from otter_export.graph.rules import RULES
from otter_export.precision import ONNX_RUNTIME, TENSORRT


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "graph.md").read_text()


def pipelines(provider: str, llama: Checkpoint) -> list[list[str]]:
    """Names of the passes for each precision, in order."""
    if provider == "trt":
        runs = [(tensorrt(32), name) for name in TENSORRT]
        runs.append((tensorrt(32, plugin=True), "fp16"))
    else:
        runs = [(onnxruntime(provider), name) for name in ONNX_RUNTIME[provider]]
    lists = [line.passes(llama.base, line.precisions[name]) for line, name in runs]
    return [[type(one).__name__ for one in passes] for passes in lists]


@pytest.mark.parametrize(("provider", "column"), [("cpu", 3), ("cuda", 4), ("trt", 5)])
def test_the_table_of_passes_is_the_pipeline(
    page: str, provider: str, column: int, llama: Checkpoint
) -> None:
    rows = [line.split("|") for line in page.splitlines() if re.match(r"\| [A-Z]\w+ \|", line)]
    listed = [row[1].strip() for row in rows if len(row) == 7 and "✓" in row[column]]
    seen: dict[str, None] = {}
    for run in pipelines(provider, llama):
        assert [name for name in listed if name in run] == run, "order"
        seen |= dict.fromkeys(run)
    assert set(listed) == set(seen)


def test_the_table_of_rules_is_the_registry(page: str) -> None:
    table = page.partition("| op | rule |")[2].partition("\n\n")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| ")]
    listed = [name.strip() for cell in cells for name in cell.split(",")]
    assert set(listed) == set(RULES)
