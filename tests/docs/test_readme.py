"""L0: README and tables say what registries and results say, and links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tools import tables

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize(
    "page", ["README.md", "docs/families.md", "docs/performance.md", "docs/gpu.md"]
)
def test_the_tables_are_those_of_the_registries_and_results(page: str) -> None:
    pytest.importorskip("onnx_ir")
    text = (ROOT / page).read_text(encoding="utf-8")
    assert tables.updated(page, text) == text, "run: python -m tools.tables"
    assert tables.updated(page, text.replace("| llama |", "| lama |")) == text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_exist(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if not (page.parent / link).exists()]
    assert not missing


def test_no_placeholder_is_left() -> None:
    for page in PAGES:
        assert not re.search(r"\b(NUMBERS|TODO|TBD|FIXME)\b", page.read_text(encoding="utf-8")), (
            page
        )
