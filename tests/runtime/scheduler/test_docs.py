"""L0: docs/batching.md runs as it stands, and lists the limits that there are."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from otter_export.runtime.request import Result
from otter_export.runtime.scheduler import Limits
from tests.runtime.tiny_model import make_model


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / "docs" / "batching.md").read_text(encoding="utf-8")


def test_the_example_runs(page: str, tmp_path: Path) -> None:
    make_model(max_sequence_length=200).save(tmp_path / "ENGINE")
    code = page.split("```python\n")[1].split("```")[0]
    code = code.replace('"ENGINE"', repr(str(tmp_path / "ENGINE")))
    # The tiny model's vocabulary has small letters only.
    code = code.replace("The movie", "the movie").replace("It was", "it was")
    heard: list[object] = []
    exec(code.replace("on_event=print", "on_event=heard.append"), {"heard": heard})
    ends = [event for event in heard if isinstance(event, Exception | Result)]
    assert len(ends) == 2
    assert any(isinstance(event, Result) for event in ends)


def test_the_table_lists_every_limit_with_its_default(page: str) -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", page, re.MULTILINE)
    found = {name: None if default == "none" else int(default) for name, default in rows}
    assert found == {field.name: field.default for field in dataclasses.fields(Limits)}
