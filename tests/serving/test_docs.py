"""L0: docs/triton.md lists the tensors, settings and metrics that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from examples import triton_live
from otter_export.converters.triton.repository import CONTAINER
from otter_export.serving.metrics import COUNTERS, GAUGES, HISTOGRAMS
from otter_export.serving.settings import Settings
from otter_export.serving.tensors import INPUTS, OUTPUTS
from tools.tritonserver.server import CONTROL_HEADER, CONTROL_VARIABLE, CONTROLLED


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "triton.md").read_text(encoding="utf-8")


def table(page: str, head: str) -> list[list[str]]:
    """Cells of the table that begins with these columns."""
    body = page.partition(f"\n| {head} |")[2].partition("\n\n")[0]
    rows = [line for line in body.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


@pytest.mark.parametrize(("head", "fields", "rank"), [("input", INPUTS, 2), ("output", OUTPUTS, 1)])
def test_tensors(page: str, head: str, fields: tuple[object, ...], rank: int) -> None:
    shapes = {2: ("`[1, 1]`", "`[1, n]`"), 1: ("`[1]`", "`[n]`")}[rank]
    expected = [
        [f"`{field.name}`", field.data_type, shapes[field.many], field.meaning]  # type: ignore[attr-defined]
        for field in fields
    ]
    assert table(page, f"{head} | type | shape") == expected


def test_settings(page: str) -> None:
    listed = {row[0].strip("`"): row[1] for row in table(page, "parameter | default")}
    assert listed == Settings().to_parameters()


def test_metrics(page: str) -> None:
    rows = table(page, "metric")
    listed = {name for row in rows for name in re.findall(r"`(otter_\w+)`", row[0])}
    assert listed == {*COUNTERS, *GAUGES, *HISTOGRAMS}


def test_container(page: str) -> None:
    assert CONTAINER in page


def test_commands_keep_control_from_clients(page: str, repository: Path) -> None:
    restricted = ",".join(CONTROLLED)
    assert f'OWNER="{restricted}:{CONTROL_HEADER}=$(openssl rand' in page
    assert f"| `{restricted}` answer 403" in page
    assert f"{CONTROL_VARIABLE}=$(" in page and f'-H "{CONTROL_HEADER}: $' in page
    security = (repository / "docs" / "security.md").read_text(encoding="utf-8")
    assert triton_live._LIMIT_BYTES == 64 << 10 and security.count("64 KB") == 2
    assert f"from {triton_live._LIMIT_CONNECTIONS} connections" in security
    assert f"{triton_live._REQUEST_SECONDS:g} s for its request" in security


def test_python_parses(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    for block in blocks:
        ast.parse(block)
