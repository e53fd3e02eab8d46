"""L0: docs/architecture.md names every file as it is, and its new decoding method runs."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest

from otter_export import Request, generate
from otter_export.registry import Registry
from otter_export.runtime import methods
from otter_export.runtime.methods.base import DecodingMethod
from tests.runtime.fake_engine import FakeEngine
from tools import tables

PAGE = "docs/architecture.md"


@pytest.fixture(scope="module")
def page(repository: Path) -> str:
    return (repository / PAGE).read_text(encoding="utf-8")


def test_every_file_has_its_line(page: str) -> None:
    assert tables.updated(PAGE, page) == page, "run: python -m tools.tables"
    assert "| `step_engine.py` | `StepEngine`: " in page


def test_the_paths_in_the_text_exist(page: str, repository: Path) -> None:
    text = page.partition("## Every file")[0]
    paths = re.findall(r"`((?:otter_export|converters|tests|tools)/[\w./]*)`", text)
    assert len(paths) > 50
    wanted = {path for path in paths if "NAME" not in path}
    assert not [path for path in wanted if not (repository / path).exists()]


def test_every_docstring_names_its_thing(page: str) -> None:
    """Not a question: "What ...", "How ...", "Whether ..." leave the reader to find the noun."""
    lines = re.findall(r"^\| `[\w.]+\.py` \| (.*) \|$", page, re.MULTILINE)
    assert len(lines) > 150 and all(lines)
    assert not [s for s in lines if re.match(r"(What|How|Whether|Which|Whose|Why|Is)\b", s)]


@pytest.fixture
def method(page: str, monkeypatch: pytest.MonkeyPatch) -> type[DecodingMethod]:
    """Run the page's module and its registration line, on a copy of the registry."""
    module_text, line = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    name, path = re.findall(r'"([^"]+)"', line)
    module = types.ModuleType(path.partition(":")[0])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(module_text, PAGE, "exec"), module.__dict__)
    copy: Registry[type[DecodingMethod]] = Registry("method", expected=type)
    exec(line, {"METHODS": copy})
    monkeypatch.setattr(methods, "METHODS", copy)
    made = methods.make_method(name, {"top_k": 5})
    return type(made)


def test_a_method_is_one_file_and_one_line(method: type[DecodingMethod]) -> None:
    """The scheduler, the engine and the sampler need to know nothing of it."""
    engine = FakeEngine()
    events = []
    request = Request([3, 1, 4], method(top_k=5), max_tokens=12)  # type: ignore[call-arg]
    result = generate(engine, request, on_event=events.append)[0]
    assert len(result.token_ids) == len(events) > 3
    for event in events:
        assert len(event.candidates) == 5
        best = max(event.candidates, key=lambda candidate: candidate.reward)
        assert event.token_id == best.token_id
