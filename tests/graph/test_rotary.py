"""L1: the rotary tables are those of the model in transformers, and each layer turns by its own.

Tables are equal bit for bit: both are made by the same module from the same configuration.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from otter_export.base_config import FAITHFUL_SCALINGS
from otter_export.base_model import BaseModel
from otter_export.errors import UnsupportedError
from otter_export.graph.base import base_graph
from otter_export.graph.rotary import set_rotations
from otter_export.layer_attention import LayerAttention, layer_attention
from tests import tiny
from tests.families import bases
from tests.graph.conftest import Over
from tests.graph.test_rules import rotated
from tests.graph.text import ops, parse, randn, run

Array = np.ndarray[Any, Any]
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


LAYER = (
    """float[B, 1, P, 4] past_key_values__{0}__key, float[B, 1, P, 4] past_key_values__{0}__value"""
)
TURN = """q{0} = RotaryEmbedding <num_heads = 2> (x, cos, sin)
    k{0} = RotaryEmbedding <num_heads = 1> (z, cos, sin)"""
ATTEND = """y{0}, c{0}, v{0} = Attention <q_num_heads = 2, kv_num_heads = 1> (q{0}, k{0}, z, mask,
    past_key_values__{0}__key, past_key_values__{0}__value)"""


def rotating(turns: list[bool]) -> ir.Model:
    """Two heads of size 4 a layer, over one key head; some layers do not rotate theirs."""
    inputs = ", ".join(LAYER.format(i) for i in range(len(turns)))
    straight = "q{0} = Identity (x) k{0} = Identity (z)"
    lines = [
        f"{(TURN if turn else straight).format(i)} {ATTEND.format(i)}"
        for i, turn in enumerate(turns)
    ]
    outputs = ", ".join(f"float[B, S, 8] y{i}" for i in range(len(turns)))
    return parse(
        f"""g (int64[B, S] position_ids, float[B, S, 8] x0, float[B, S, 4] z,
               float[B, S, 2] cos, float[B, S, 2] sin, bool[B, 1, S, T] mask, {inputs})
           => ({outputs}) {{ x = Identity (x0) {" ".join(lines)} }}"""
    )


@pytest.fixture(scope="module")
def two_tables(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """Heads of size 4; the kinds of layers have tables of their own."""
    case = bases.Case(
        "two",
        "olmo3",
        {
            **{"hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1},
            "head_dim": 4,
            "layer_types": ["sliding_attention", "full_attention"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2.0},
            },
        },
    )
    return BaseModel.open(bases.write_base(case, tmp_path_factory.mktemp("two") / "base"))


def test_layers_rotate_by_their_tables_or_not_at_all(two_tables: BaseModel) -> None:
    """Three layers: by one table, not at all, by another."""
    tables = ("sliding_attention", None, "full_attention")
    model = rotating([True, True, True])
    layers = [LayerAttention(None, table) for table in tables]
    set_rotations(model, two_tables, layers, ir.DataType.FLOAT, 16)
    assert ops(model).count("RotaryEmbedding") == 4
    names = {f"rotary.{t}.{n}_cache" for t in tables if t is not None for n in ("cos", "sin")}
    assert set(model.graph.initializers) == names
    x, z, positions = randn(2, 3, 8), randn(2, 3, 4, seed=1), np.array([[0, 1, 2], [7, 8, 8]])
    cache = randn(2, 1, 0, 4)
    inputs: dict[str, Any] = {
        **{"position_ids": positions, "x0": x, "z": z, "mask": np.tri(3, dtype=bool)[None, None]},
        **{name: np.zeros((2, 3, 2), np.float32) for name in ("cos", "sin")},
        **{f"past_key_values__{i}__{kind}": cache for i in range(3) for kind in ("key", "value")},
    }
    inputs["mask"] = np.tile(inputs["mask"], (2, 1, 1, 1))
    frequencies = np.array([1.0, 0.1])  # theta 100, of two pairs
    for found, factor in zip(run(model, **inputs), (1.0, 0.0, 0.5), strict=True):
        angle = positions[..., None] * frequencies * factor
        q, k = rotated(x, angle, 2), rotated(z, angle, 1)
        np.testing.assert_allclose(found, attended(q, k, z), atol=1e-5)


def test_a_graph_that_does_not_rotate_where_the_base_does(two_tables: BaseModel) -> None:
    """A table would have nothing to act on, and the graph be another model."""
    layers = [LayerAttention(None, "full_attention")]
    with pytest.raises(UnsupportedError, match="does not rotate its queries and keys, as the base"):
        set_rotations(rotating([False]), two_tables, layers, ir.DataType.FLOAT, 16)
    model = rotating([False])
    set_rotations(model, two_tables, [LayerAttention(None, None)], ir.DataType.FLOAT, 16)
    assert not model.graph.initializers


@pytest.mark.parametrize(
    ("case", "dimension", "interleaved"),
    [("llama-3", 0, 0), ("cohere", 0, 1), ("phi", 8, 0), ("glm", 8, 1), ("phi4-mini", 12, 0)],
)
def test_parts_and_neighbours(case: str, dimension: int, interleaved: int, over: Over) -> None:
    """0 is the whole head."""
    for node in base_graph(over(case).base).graph:
        if node.op_type == "RotaryEmbedding":
            found = [node.attributes[n].as_int() for n in ("rotary_embedding_dim", "interleaved")]
            assert found == [dimension, interleaved]


def attended(q: Array, k: Array, v: Array) -> Array:
    """Causal attention of two heads over one, ``[B, S, 8]``."""
    heads = []
    for h in range(2):
        scores = q[..., 4 * h : 4 * h + 4] @ k.transpose(0, 2, 1) / 2
        scores = np.where(np.tri(q.shape[1], dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ v)
    return np.concatenate(heads, axis=-1)
