"""L0: the tiny bases have what the tables claim: every family's windows, every scaling."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from otter_export.base_config import FAITHFUL_SCALINGS
from otter_export.base_model import BaseModel
from otter_export.families import FAMILIES
from otter_export.layer_attention import layer_attention
from tests.families.bases import CASES, WINDOW, config_of
from tests.families.made import LENGTHS, NEW_TOKENS


def test_every_windowed_family_has_a_base_with_windows(tmp_path: Path) -> None:
    found = set()
    for case in CASES:
        (tmp_path / "config.json").write_text(json.dumps(config_of(case).to_dict()))
        base = BaseModel.open(tmp_path)
        if WINDOW in {layer.window for layer in layer_attention(base)}:
            found.add(base.family.name)
    assert found == {name for name in FAMILIES if FAMILIES.load(name).windowed}


def test_prompts_begin_inside_of_the_window_and_end_outside() -> None:
    assert min(LENGTHS) < WINDOW < min(LENGTHS) + NEW_TOKENS
    assert max(LENGTHS) > 2 * WINDOW


def test_every_scaling_has_a_base() -> None:
    found = {kind for case in CASES for kind in scalings(config_of(case).to_dict())}
    assert found == set(FAITHFUL_SCALINGS)


def scalings(config: dict[str, Any]) -> Iterator[str]:
    """Of all layers, and of each kind of layer."""
    settings = config.get("rope_parameters") or {}
    for one in (settings, *settings.values()):
        if isinstance(one, dict) and "rope_type" in one:
            yield one["rope_type"]
