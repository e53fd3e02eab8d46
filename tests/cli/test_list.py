"""L0: ``otter-export list`` shows the registries, also where an extra is missing."""

from __future__ import annotations

import json
import sys

import pytest

from otter_export.cli.list import LISTS
from otter_export.families import FAMILIES
from otter_export.signals import SIGNALS
from tests.command_line import Cli


@pytest.mark.parametrize("what", LISTS)
def test_every_list_has_names_and_descriptions(what: str, cli: Cli) -> None:
    result = cli("list", what)
    assert result.status == 0, result.stderr
    header, rule, *rows = result.stdout.splitlines()
    assert header.startswith("name") and set(rule) == {"-", " "} and rows
    entries = json.loads(cli("list", what, "--json").stdout)
    assert len(entries) == len(rows)
    for entry in entries:
        assert any(text for key, text in entry.items() if key != "name"), entry


def test_lists_follow_the_registries(cli: Cli) -> None:
    from otter_export.runtime.methods import METHODS

    families = json.loads(cli("list", "families", "--json").stdout)
    assert [entry["name"] for entry in families] == list(FAMILIES)
    methods = json.loads(cli("list", "methods", "--json").stdout)
    assert [entry["name"] for entry in methods] == list(METHODS)
    signals = [entry["name"] for entry in json.loads(cli("list", "signals", "--json").stdout)]
    assert signals[: len(SIGNALS.names())] == list(SIGNALS)


def test_a_missing_extra_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [m for m in sys.modules if m.startswith("otter_export.graph")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    result = cli("list", "rules")
    assert result.status == 2
    assert result.stderr.count("\n") == 1
    assert "pip install 'otter-export[build]'" in result.stderr
