"""L2: docs/upstream.md: each fault of mobius-onnx is still there, and as large as the page says.

A fault that is gone means that a mend or a refusal can go, too.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = (Path(__file__).parents[2] / "docs" / "upstream.md").read_text(encoding="utf-8")
#: The page's table: what its second column says of each case.
DIFFERENCES = {
    case: found for case, found in re.findall(r"^\| ([^|]+) \| (no build|[\d.e-]+) \|", PAGE, re.M)
}
#: Of a faithful graph.
FAITHFUL = 1e-5


@pytest.fixture(scope="module")
def page() -> dict[str, Any]:
    """Names that the page's Python defines."""
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/upstream.md", "exec"), names)
    return names


def test_the_table_has_every_case(page: dict[str, Any]) -> None:
    assert list(DIFFERENCES) == list(page["CASES"])


@pytest.mark.parametrize("case", DIFFERENCES)
def test_the_fault_is_as_the_page_says(case: str, page: dict[str, Any]) -> None:
    model_type, settings, without = page["CASES"][case]
    if DIFFERENCES[case] == "no build":
        with pytest.raises(ValueError, match=r"without weights|shape mismatch"):
            page["difference"](model_type, **settings)
    else:
        found = page["difference"](model_type, **settings)
        assert found == pytest.approx(float(DIFFERENCES[case]), rel=0.1)
    if without is not None:
        assert page["difference"](model_type, **without) < FAITHFUL
