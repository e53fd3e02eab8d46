"""L1: the rotary tables are those of the model in transformers, and others are refused.

Equal bit for bit: both are made by the same module from the same configuration.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_export.base_config import FAITHFUL_SCALINGS
from otter_export.checkpoint import BaseModel
from otter_export.errors import UnsupportedError
from otter_export.graph.base import base_graph
from otter_export.layer_attention import layer_attention
from tests import tiny
from tests.families import bases

ROTATING = [case for case in bases.CASES if case.model_type != "gpt2"]

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
def test_tables_of_old_and_new_keys(name: str, tmp_path: Path) -> None:
    import transformers

    directory = tiny.write_base(tmp_path / "base", **CASES[name])
    config = transformers.AutoConfig.from_pretrained(directory)
    rotary = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(config)
    assert_tables_equal(BaseModel.open(directory), rotary)


@pytest.mark.parametrize("case", ROTATING, ids=lambda case: case.name)
def test_tables_of_every_base(case: bases.Case, tmp_path: Path) -> None:
    import transformers

    directory = bases.write_base(case, tmp_path / "base")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    assert_tables_equal(BaseModel.open(directory), model.base_model.rotary_emb)


def assert_tables_equal(base: BaseModel, rotary: Any) -> None:
    import torch

    graph = base_graph(base).graph
    rows = base.dimensions.max_position_embeddings
    ids, names = torch.arange(rows)[None], inspect.signature(rotary.forward).parameters
    used = sorted({layer.rotary for layer in layer_attention(base) if layer.rotary is not None})
    for table in used:
        kind = {"layer_type": table} if "layer_type" in names else {}
        expected = rotary(torch.zeros(1, 1, 1), ids, **kind)
        for name, values in zip(("cos", "sin"), expected, strict=True):
            cache = graph.initializers[f"rotary.{table}.{name}_cache"].const_value
            assert cache is not None
            found = cache.numpy()
            half = values.shape[-1] // 2
            is_halves = bool((values[..., :half] == values[..., half:]).all())
            once = values[0, :, :half] if is_halves else values[0, :, ::2]
            np.testing.assert_array_equal(found, once.numpy())


def test_every_accepted_kind_is_compared() -> None:
    kinds = {name.partition("-")[0] for name in CASES} | {"yarn", "longrope"}
    assert kinds == set(FAITHFUL_SCALINGS)
    assert {"olmo3-yarn", "phi3-longrope"} <= {case.name for case in bases.CASES}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_scaling asks .* 'dynamic'"),
        ({"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}, "'ntk'; built faithfully:"),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}}, "'dynamic'"),
        ({"rope_scaling": ["linear"]}, r"scaling \['linear'\]"),
        ({"partial_rotary_factor": 0.5}, "rotates whole heads; partial_rotary_factor is 0.5"),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor is 0.5",
        ),
    ],
)
def test_other_kinds_are_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    directory = tiny.write_base(tmp_path / "base", **settings)
    with pytest.raises(UnsupportedError, match=message):
        BaseModel.open(directory)


def test_longrope_ends_at_its_original_length(tmp_path: Path) -> None:
    """Longer sequences rotate otherwise from their first token on."""
    case = next(case for case in bases.CASES if case.name == "phi3-longrope")
    base = BaseModel.open(bases.write_base(case, tmp_path / "base"))
    assert base.dimensions.max_position_embeddings == 64
    assert base.library_config["max_position_embeddings"] == 128
