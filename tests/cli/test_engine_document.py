"""L4: the client printed in docs/engine.md drives an engine, and agrees with ``generate``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from otter_export import manifest as manifest_file
from otter_export.manifest import EngineManifest
from otter_export.signals import SIGNALS
from tests import tiny
from tests.command_line import Cli


@pytest.fixture(scope="module")
def document(repository: Path) -> str:
    return (repository / "docs" / "engine.md").read_text()


def test_the_printed_client(cli: Cli, document: str, tmp_path: Path) -> None:
    pytest.importorskip("mobius")
    checkpoint = tiny.write_checkpoint(tmp_path / "ckpt")
    engine = tmp_path / "engine"
    built = cli("build", checkpoint, "--out", engine)
    assert built.status == 0, built.stderr
    (code,) = re.findall(r"```python\n(.*?)```", document, re.DOTALL)
    client: dict[str, Any] = {"__name__": "client"}
    exec(compile(code, "docs/engine.md", "exec"), client)
    texts = set()
    for weight in (0.0, 20.0):
        ours = cli(
            "generate", engine, "--prompt", "w5 w6 w7", "--json",
            "--max-tokens", 12, "--top-k", 4, "--weight", weight,
        )  # fmt: skip
        expected = json.loads(ours.stdout)["token_ids"]
        found = client["generate"](engine, "w5 w6 w7", max_tokens=12, top_k=4, weight=weight)
        assert found == expected
        texts.add(tuple(found))
    assert len(texts) == 2, "the weight made no difference, so it was not tested"


def test_every_field_of_the_manifest_is_described(document: str) -> None:
    section = document.partition("## `engine.json`")[2].partition("\n## ")[0]
    for field in ("format", "version", *EngineManifest.__dataclass_fields__):
        assert f"`{field}`" in section, field
    assert f"version {manifest_file.VERSION}" in document


def test_every_kind_of_signal_is_described(repository: Path) -> None:
    text = (repository / "docs" / "checkpoint.md").read_text()
    for kind in SIGNALS:
        assert f"| `{kind}` |" in text
