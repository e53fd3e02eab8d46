"""L2: the walk-through of docs/adding_a_family.md: its table, registered, equals torch."""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from otter_export import families
from otter_export.base_model import BaseModel
from otter_export.checkpoint import Checkpoint
from otter_export.errors import UnsupportedError
from otter_export.modeling.otter_model import load_reference
from otter_export.registry import Registry
from tests import built, tiny
from tests.families.bases import WINDOW, Case, write_base

BASES = [
    Case("plain", "qwen3"),
    Case(
        "window",
        "qwen3",
        {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
]


@pytest.fixture
def blocks(repository: Path) -> list[str]:
    """The Python of the page."""
    page = (repository / "docs" / "adding_a_family.md").read_text()
    return re.findall(r"```python\n(.*?)```", page, re.DOTALL)


@pytest.fixture
def registered(blocks: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the page's module and its registration line, on a registry without that family."""
    line = next(block for block in blocks if "FAMILIES.register" in block)
    name, _ = re.findall(r'"([^"]+)"', line)
    module = types.ModuleType(f"otter_export.families.{name}")
    exec(compile(_table(blocks), "docs/adding_a_family.md", "exec"), module.__dict__)
    others: Registry[families.Family] = Registry("base family")
    for known in families.FAMILIES:
        if known != name:
            others.register(known, f"otter_export.families.{known}:FAMILY")
    monkeypatch.setattr(families, "FAMILIES", others)
    with pytest.raises(UnsupportedError, match=f"'{name}' has no family"):
        families.family_of({"model_type": name}, "config.json")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(line, {"FAMILIES": others})
    return name


def _table(blocks: list[str]) -> str:
    return next(block for block in blocks if "FAMILY = " in block)


def test_the_page_has_what_the_repository_has(blocks: list[str], repository: Path) -> None:
    assert (repository / "otter_export" / "families" / "qwen3.py").read_text() == _table(blocks)
    places = ("otter_export/families/__init__.py", "tests/families/bases.py")
    for block, path in zip(blocks[-2:], places, strict=True):
        assert block.strip() in (repository / path).read_text()


def test_the_page_s_way_to_look_at_modules_runs(
    blocks: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig

    small = AutoConfig.for_model("qwen3", hidden_size=8, head_dim=4, vocab_size=8)
    small.num_hidden_layers = 1
    monkeypatch.setattr(AutoConfig, "for_model", lambda *_, **__: small)
    exec(blocks[0], {})
    assert "model.layers.0.self_attn.q_norm.weight', (4,)" in capsys.readouterr().out


@pytest.mark.parametrize("case", BASES, ids=lambda case: case.name)
def test_the_page_adds_a_family_that_equals_torch(
    case: Case, registered: str, tmp_path: Path
) -> None:
    base = write_base(case, tmp_path / "base")
    directory = tiny.write_checkpoint(tmp_path / "ck", base=base, heads=2)
    built.randomize(directory)
    checkpoint = Checkpoint.open(directory)
    family = checkpoint.base.family
    assert family.name == registered
    assert sys.modules[f"otter_export.families.{registered}"].FAMILY is family
    engine = built.Graph.load(built.build(checkpoint, tmp_path / "engine"))
    ids = np.random.default_rng(0).integers(3, 128, (2, 3 * WINDOW))
    with torch.no_grad():
        expected = load_reference(checkpoint)(torch.from_numpy(ids))
    found = engine(ids)
    assert built.relative(found["logits"], expected.logits.numpy()) < 1e-4
    assert built.relative(found["reward"], expected.signals["reward"].numpy()) < 1e-4


def test_the_page_refuses_kinds_of_layers_that_it_does_not_name(
    registered: str, tmp_path: Path
) -> None:
    base = write_base(BASES[0], tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    kinds = {"layer_types": ["full_attention", "linear_attention"]}
    (base / "config.json").write_text(json.dumps({**config, **kinds}))
    with pytest.raises(UnsupportedError, match="layer_types must all be"):
        BaseModel.open(base)
