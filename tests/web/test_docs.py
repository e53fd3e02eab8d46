"""L0: docs/serving.md lists the fields, paths and limits that there are."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from otter_export.serving.settings import Settings
from otter_export.web import app, body, reply


@pytest.fixture(scope="module")
def page() -> str:
    return (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")


def test_every_field_and_path_is_there(page: str) -> None:
    named = set(re.findall(r"`([a-z_]+)`", page))
    assert named >= {*body._OWN, *body._RENAMED, *body._NEUTRAL, *body._IGNORED}
    source = Path(app.__file__).read_text(encoding="utf-8")
    for path in re.findall(r'Route\("([^"{]+)', source):
        assert path.rstrip("/") in page


def test_limits(page: str) -> None:
    settings = Settings()
    assert 2 * settings.max_prompt_bytes == 2 << 20 and "2 MiB" in page
    assert f"{app.BODY_SECONDS:g} s to arrive" in page
    assert f"for {reply.TAKE_SECONDS:g} s is left" in page
    for option in ("max_batch_size", "max_queue", "max_tokens", "max_candidates"):
        assert f"`--{option.replace('_', '-')}` ({getattr(settings, option)})" in page


def test_python_parses(page: str) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert blocks
    for block in blocks:
        ast.parse(block)
