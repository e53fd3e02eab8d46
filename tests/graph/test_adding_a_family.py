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
from otter_export.checkpoint import Checkpoint
from otter_export.modeling.otter_model import load_reference
from otter_export.registry import Registry
from tests import built, tiny


@pytest.fixture
def registered(repository: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the page's module and its registration line, on a copy of the registry."""
    page = (repository / "docs" / "adding_a_family.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    table = next(block for block in blocks if "FAMILY = Family(" in block)
    line = next(block for block in blocks if "FAMILIES.register" in block)
    name, _ = re.findall(r'"([^"]+)"', line)
    module = types.ModuleType(f"otter_export.families.{name}")
    exec(compile(table, "docs/adding_a_family.md", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    copy: Registry[families.Family] = Registry("base family")
    for known in families.FAMILIES:
        copy.register(known, f"otter_export.families.{known}:FAMILY")
    monkeypatch.setattr(families, "FAMILIES", copy)
    exec(line, {"FAMILIES": copy})
    return name


def write_base(directory: Path) -> Path:
    """A tiny random StarCoder2, written by transformers."""
    import transformers

    config = transformers.Starcoder2Config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=128,
        max_position_embeddings=128,
        sliding_window=None,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    model = transformers.Starcoder2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():  # biases start at zero, norms at one
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    tiny.write_tokenizer(directory, 128)
    return directory


def test_the_page_adds_a_family_that_equals_torch(registered: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    directory = tiny.write_checkpoint(tmp_path / "ck", base=base, heads=2)
    built.randomize(directory)
    checkpoint = Checkpoint.open(directory)
    assert checkpoint.base.family.name == registered
    engine = built.Graph.load(built.build(checkpoint, tmp_path / "engine"))
    ids = np.random.default_rng(0).integers(3, 128, (2, 16))
    with torch.no_grad():
        expected = load_reference(checkpoint)(torch.from_numpy(ids))
    found = engine(ids)
    assert built.relative(found["logits"], expected.logits.numpy()) < 1e-4
    assert built.relative(found["reward"], expected.signals["reward"].numpy()) < 1e-4


def test_the_page_refuses_a_sliding_window(registered: str, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "sliding_window": 64}))
    with pytest.raises(families.UnsupportedError, match="sliding_window = 64 is not supported"):
        tiny.write_checkpoint(tmp_path / "ck", base=base, heads=2)
