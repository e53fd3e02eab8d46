"""L1: the rotary tables equal transformers', and what is not built faithfully is refused.

Tolerance: 2e-6 absolute. mobius-onnx and transformers both take the angle in float32, where the
largest position (127) and frequency (1) leave an error of 127 * 2^-24, and cosine has slope 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_export.base_config import FAITHFUL_SCALINGS
from otter_export.checkpoint import BaseModel
from otter_export.errors import UnsupportedError
from otter_export.graph.base import base_graph, check_rotary_tables
from tests import tiny

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
#: Each kind under the key of today's config.json, and under that of older ones.
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "default-theta": {"rope_theta": 5e5},
    "default-parameters": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e4}},
    "linear-parameters": {
        "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    },
    "linear-scaling": {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "llama3-parameters": {"rope_parameters": {**LLAMA3, "rope_theta": 1e4}},
    "llama3-scaling": {"rope_scaling": LLAMA3, "rope_theta": 5e5},
}


@pytest.mark.parametrize("name", CASES)
def test_tables_equal_transformers(name: str, tmp_path: Path) -> None:
    import torch
    import transformers

    directory = tiny.write_base(tmp_path / "base", **CASES[name])
    graph = base_graph(BaseModel.open(directory)).graph
    config = transformers.AutoConfig.from_pretrained(directory)
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    positions = torch.arange(128)[None]
    for kind, expected in zip(("cos", "sin"), rotary(torch.zeros(1, 1, 1), positions), strict=True):
        table = graph.initializers[f"model.rotary_emb.{kind}_cache"].const_value
        assert table is not None
        # transformers repeats the half that rotate_half needs twice.
        np.testing.assert_allclose(table.numpy(), expected[0, :, :8].numpy(), rtol=0, atol=2e-6)


def test_every_accepted_kind_is_compared() -> None:
    assert {name.partition("-")[0] for name in CASES} == set(FAITHFUL_SCALINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "'yarn'; built faithfully:"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling asks .* 'dynamic'"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters asks .* 'longrope'"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
            "'one per layer type'",
        ),
        ({"rope_scaling": ["linear"]}, r"scaling \['linear'\]"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "rope_parameters.partial_rotary_factor is 0.5",
        ),
    ],
)
def test_other_kinds_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    directory = tiny.write_base(tmp_path / "base", **settings)
    with pytest.raises(UnsupportedError, match=message):
        BaseModel.open(directory)


def test_a_table_shorter_than_the_positions_is_refused(tmp_path: Path) -> None:
    base = BaseModel.open(tiny.write_base(tmp_path / "base"))
    model = base_graph(base)
    longer = BaseModel.open(tiny.write_base(tmp_path / "long", max_position_embeddings=256))
    with pytest.raises(UnsupportedError, match="128 rows for 256 positions"):
        check_rotary_tables(model, longer)
