"""A tiny engine whose base has a chat template, and a server of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from otter_export import load_engine
from otter_export.runtime.engine import Engine
from tests import built, tiny
from tests.chat_templates import WORDS
from tests.web.running import Server, serving


@pytest.fixture(scope="session")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("serve")
    base = tiny.write_base(root / "base")
    (base / "chat_template.jinja").write_text(WORDS)
    return built.build(built.checkpoint_over(base, root / "checkpoint"), root / "engine")


@pytest.fixture(scope="session")
def engine(engine_dir: Path) -> Engine:
    return load_engine(engine_dir, threads=1)


@pytest.fixture(scope="module")
def server(engine_dir: Path) -> Iterator[Server]:
    with serving(load_engine(engine_dir, threads=1)) as server:
        yield server
