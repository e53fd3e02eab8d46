"""L1: each mend of the base graph fires, does not fire, is named, and gives what is meant."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from otter_export.base_model import BaseModel
from otter_export.graph.base import MENDS, base_graph
from otter_export.graph.mends import _MENDS, mend
from tests import tiny
from tests.families import bases
from tests.graph.conftest import Over
from tests.graph.text import ops, parse, randn, run

Q = "model.layers.0.self_attn.q_proj"
X, W, B = randn(2, 3, 64), randn(64, 64, seed=1), randn(64, seed=2)


def projection(*, bias: bool) -> ir.Model:
    """``x W^T``, plus ``b`` where there is one."""
    declared, product = (", float[64] b", "p") if bias else ("", "y")
    added = "y = Add (p, b)" if bias else ""
    model = parse(
        f"""g (float[B, S, 64] x, float[64, 64] w{declared}) => (float[B, S, 64] z)
            {{ t = Transpose <perm = [1, 0]> (w) {product} = MatMul (x, t) {added}
               z = Identity (y) }}""",
        **({"w": W, "b": B} if bias else {"w": W}),
    )
    for value in list(model.graph.initializers.values()):
        value.name = f"{Q}.{'weight' if value.name == 'w' else 'bias'}"
    return model


@pytest.fixture(scope="module")
def with_biases(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """A Llama base with biases everywhere."""
    directory = tmp_path_factory.mktemp("biases") / "base"
    return BaseModel.open(tiny.write_base(directory, attention_bias=True, mlp_bias=True))


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    """One without."""
    return BaseModel.open(tiny.write_base(tmp_path_factory.mktemp("plain") / "base"))


def test_a_missing_bias_is_added(with_biases: BaseModel, without: BaseModel) -> None:
    model = projection(bias=False)
    assert mend(model, without) == ()
    assert mend(model, with_biases) == ("missing_biases",)
    bias = model.graph.initializers[f"{Q}.bias"]
    assert str(bias.shape) == "[64]" and bias.const_value is None  # base_graph attaches it
    bias.const_value = ir.tensor(B, name=bias.name)
    np.testing.assert_allclose(run(model, x=X)[0], X @ W.T + B, atol=1e-5)
    assert mend(model, with_biases) == ()


def test_a_phantom_bias_is_removed(with_biases: BaseModel, without: BaseModel) -> None:
    model = projection(bias=True)
    assert mend(model, with_biases) == ()
    assert mend(model, without) == ("phantom_biases",)
    assert "Add" not in ops(model) and f"{Q}.bias" not in model.graph.initializers
    np.testing.assert_allclose(run(model, x=X)[0], X @ W.T, atol=1e-5)
    assert mend(model, without) == ()


EMBEDDING = """g (int64[S] ids, {0}[128, 64] e, {0} s) => ({0}[S, 64] y)
    {{ x = Gather (e, ids) y = Mul ({1}) }}"""


@pytest.mark.parametrize("order", ["x, s", "s, x"])
@pytest.mark.parametrize(
    ("onnx", "dtype"),
    [("float", np.float32), ("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)],
)
def test_the_scale_of_embeddings_is_exact(order: str, onnx: str, dtype: Any, over: Over) -> None:
    """sqrt(80) is 8.9443: each dtype rounds it otherwise."""
    gemma = over("gemma").base
    wider = dataclasses.replace(gemma.dimensions, hidden_size=80)
    base = dataclasses.replace(gemma, dimensions=wider)
    weights = {"e": randn(128, 64).astype(dtype), "s": np.array(9, dtype)}
    model = parse(EMBEDDING.format(onnx, order), **weights)
    model.graph[0].outputs[0].type = ir.TensorType(ir.DataType.from_numpy(np.dtype(dtype)))
    model.graph.initializers["e"].name = base.embedding_name
    assert mend(model, over("qwen3").base) == ()
    assert mend(model, base) == ("embedding_scale",)
    scale = next(v for v in list(model.graph)[-1].inputs if v is not None and v.is_initializer())
    assert scale.const_value is not None
    found = scale.const_value.numpy()
    assert found.dtype == dtype and found == np.sqrt(80).astype(dtype)
    assert mend(model, base) == ()


@pytest.mark.parametrize("own", [None, 24**-0.5, 0.25])
def test_the_scale_of_scores_is_the_bases(own: float | None, over: Over) -> None:
    gemma3 = over("gemma3").base  # query_pre_attn_scalar 24, heads of 16
    scale = "" if own is None else f", scale = {own}"
    model = parse(
        f"""g (float[B, S, 64] q, float[B, S, 32] k) => (float[B, S, 64] y)
            {{ y = Attention <q_num_heads = 4, kv_num_heads = 2{scale}> (q, k, k) }}"""
    )
    assert mend(model, over("qwen3").base) == ()
    fires = own != 24**-0.5
    assert mend(model, gemma3) == (("attention_scale",) if fires else ())
    assert model.graph[0].attributes["scale"].as_float() == pytest.approx(24**-0.5)
    assert mend(model, gemma3) == ()


def test_a_setting_of_another_family_is_no_scale(tmp_path: Path) -> None:
    """The Llama of transformers does not read it."""
    base = BaseModel.open(tiny.write_base(tmp_path / "base", query_pre_attn_scalar=64))
    assert base_graph(base).metadata_props[MENDS] == ""


#: Bases in which a mend fires, by the mend's name.
NAMED: dict[str, bases.Case] = {
    "missing_biases": bases.Case("biases", "llama", {"mlp_bias": True}),
    "phantom_biases": bases.Case("glm", "glm"),
    "embedding_scale": bases.Case("gemma", "gemma", {"hidden_size": 80}),
    "attention_scale": bases.Case("gemma3", "gemma3_text", {"query_pre_attn_scalar": 24}),
}


@pytest.mark.parametrize("name", list(NAMED))
def test_a_graph_names_its_mends(name: str, tmp_path: Path) -> None:
    assert set(NAMED) == set(_MENDS)
    base = BaseModel.open(bases.write_base(NAMED[name], tmp_path / "base"))
    assert base_graph(base).metadata_props[MENDS] == name


def test_a_graph_without_mends_names_none(without: BaseModel) -> None:
    assert base_graph(without).metadata_props[MENDS] == ""
