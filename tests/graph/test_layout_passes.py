"""L1: passes that change shapes and what is computed: fires, does not fire, output equal.

Values only move here, so outputs are compared bit for bit, except for the norms (1e-6: ONNX
Runtime's fused norms sum in another order) and for attention (1e-5: softmax in two parts).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from otter_export.graph.passes.chain_products import ChainProducts
from otter_export.graph.passes.flatten_tokens import FlattenTokens
from otter_export.graph.passes.float_logits import FloatLogits
from otter_export.graph.passes.fold_gains import FoldGains
from otter_export.graph.passes.keep_rows import KeepLastLogits
from otter_export.graph.passes.merge_reshapes import MergeReshapes
from otter_export.graph.passes.read_only_cache import ReadOnlyCache
from otter_export.graph.passes.reuse_statistics import ReuseStatistics
from tests.graph.text import ops, parse, randn, run

Array = np.ndarray[Any, Any]

HEADS = """g (int64[B, S] input_ids, float[9, 4] E, float[4, 9] H, float[4, 1] W)
   => (float[B, S, 9] logits, float[B, S, 1] reward)
   { x = Gather (E, input_ids) n = Sigmoid (x) logits = MatMul (n, H)
     signals__reward__matmul = MatMul (x, W) reward = Tanh (signals__reward__matmul) }"""


def heads_model() -> ir.Model:
    model = parse(HEADS, E=randn(9, 4), H=randn(4, 9, seed=1), W=randn(4, 1, seed=2))
    for node in model.graph:
        width = {"n": 4, "x": 4, "signals.reward.matmul": 1}.get(str(node.outputs[0].name))
        if width is not None:
            node.outputs[0].shape = ir.Shape(["B", "S", width])
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    return model


IDS = np.array([[3, 5, 4], [8, 0, 1]])


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_keep_last_logits_is_a_slice(keep: int) -> None:
    model = heads_model()
    logits, reward = run(model, input_ids=IDS)
    assert KeepLastLogits()(model).modified
    assert [v.name for v in model.graph.inputs] == ["input_ids", "logits_to_keep"]
    found = run(model, input_ids=IDS, logits_to_keep=np.array([keep]))
    np.testing.assert_array_equal(found[0], logits[:, -keep:])
    np.testing.assert_array_equal(found[1], reward[:, -keep:])
    assert str(model.graph.outputs[0].shape) == "[batch,kept,9]"


def test_flatten_tokens_carries_two_dimensions_and_restores_outputs() -> None:
    model = heads_model()
    before = run(model, input_ids=IDS)
    FlattenTokens(frozenset({"E"}))(model)
    for node in model.graph:
        if node.op_type in ("MatMul", "Sigmoid", "Tanh"):
            assert node.outputs[0].shape is not None and len(node.outputs[0].shape) == 2
    assert [v.name for v in model.graph.outputs] == ["logits", "reward"]
    for found, expected in zip(run(model, input_ids=IDS), before, strict=True):
        assert found.shape == expected.shape
        np.testing.assert_array_equal(found, expected)


def test_flatten_tokens_after_keep_last_logits_counts_the_kept_rows() -> None:
    model = heads_model()
    KeepLastLogits()(model)
    before = run(model, input_ids=IDS, logits_to_keep=np.array([2]))
    FlattenTokens(frozenset({"E"}))(model)
    after = run(model, input_ids=IDS, logits_to_keep=np.array([2]))
    for found, expected in zip(after, before, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_flatten_tokens_carries_capped_and_scaled_logits() -> None:
    """What lies behind the head of Gemma 2 and of Granite is done to two dimensions too."""
    model = parse(
        """g (int64[B, S] input_ids, float[9, 4] E, float[4, 9] H, float c)
           => (float[B, S, 9] logits)
           { x = Gather (E, input_ids) l = MatMul (x, H) d = Div (l, c) t = Tanh (d)
             logits = Mul (t, c) }""",
        E=randn(9, 4),
        H=randn(4, 9, seed=1),
        c=np.array(0.5, np.float32),
    )
    for node in model.graph:
        node.outputs[0].shape = ir.Shape(["B", "S", 4 if node.op_type == "Gather" else 9])
    before = run(model, input_ids=IDS)
    FlattenTokens(frozenset({"E"}))(model)
    ranks = {n.op_type: len(n.outputs[0].shape or ()) for n in model.graph}
    assert {op: ranks[op] for op in ("MatMul", "Div", "Tanh", "Mul")} == dict.fromkeys(
        ("MatMul", "Div", "Tanh", "Mul"), 2
    )
    np.testing.assert_array_equal(run(model, input_ids=IDS)[0], before[0])


def test_flatten_tokens_gives_structural_ops_three_dimensions() -> None:
    model = parse(
        """g (int64[B, S] input_ids, float[9, 8] E, float[B, S, 2] cos, float[B, S, 2] sin)
           => (float[B, S, 8] y)
           { x = Gather (E, input_ids) r = RotaryEmbedding <num_heads = 2> (x, cos, sin)
             y = Sigmoid (r) }""",
        E=randn(9, 8),
    )
    for node, width in zip(model.graph, (8, 8, 8), strict=True):
        node.outputs[0].shape = ir.Shape(["B", "S", width])
    angle = randn(2, 3, 2, seed=3)
    inputs = {"input_ids": IDS, "cos": np.cos(angle), "sin": np.sin(angle)}
    before = run(model, **inputs)
    FlattenTokens(frozenset({"E"}))(model)
    np.testing.assert_array_equal(run(model, **inputs)[0], before[0])


def test_merge_reshapes_keeps_the_last() -> None:
    model = parse(
        """g (float[2, 6] x, int64[1] s, int64[2] t) => (float[4, 3] y)
           { a = Reshape (x, s) y = Reshape (a, t) }""",
        s=np.array([-1]),
        t=np.array([4, 3]),
    )
    x = randn(2, 6)
    assert MergeReshapes()(model).modified
    assert [v.name for v in list(model.graph)[-1].inputs if v is not None] == ["x", "t"]
    np.testing.assert_array_equal(run(model, x=x)[0], x.reshape(4, 3))


def test_merge_reshapes_leaves_a_single_one() -> None:
    model = parse(
        "g (float[2, 6] x, int64[1] s) => (float[N] y) { y = Reshape (x, s) }", s=np.array([-1])
    )
    assert not MergeReshapes()(model).modified


def test_merge_reshapes_leaves_a_shape_that_copies_dimensions() -> None:
    """The 0 of a split into heads is a dimension of the reshape before it."""
    model = parse(
        """g (float[6, 4] x, int64[3] s, int64[4] t) => (float[2, 3, 2, 2] y)
           { a = Reshape (x, s) y = Reshape (a, t) }""",
        s=np.array([2, 3, 4]),
        t=np.array([0, 0, -1, 2]),
    )
    x = randn(6, 4)
    assert not MergeReshapes()(model).modified
    np.testing.assert_array_equal(run(model, x=x)[0], x.reshape(2, 3, 2, 2))


def test_float_logits_casts_half_logits_only() -> None:
    text = "g ({0}[B, S, 4] n, {0}[4, 9] H) => ({0}[B, S, 9] logits) {{ logits = MatMul (n, H) }}"
    half = parse(text.format("float16"), H=randn(4, 9).astype(np.float16))
    n = randn(1, 2, 4).astype(np.float16)
    before = run(half, n=n)[0]
    assert FloatLogits()(half).modified
    after = run(half, n=n)[0]
    assert after.dtype == np.float32
    # A CPU multiplies in float32, and so need not round to float16 before the Cast.
    np.testing.assert_array_equal(after.astype(np.float16), before)
    assert not FloatLogits()(half).modified
    assert not FloatLogits()(parse(text.format("float"), H=randn(4, 9))).modified


RMS = """g (float[B, S, 8] a, float[B, S, 8] b, float[8] gamma)
   => (float[B, S, 1] q, float[B, S, 8] y)
   {{ {} n = RMSNormalization <axis = -1, epsilon = 1e-3> (x, gamma)
      r = com.otter.InverseRms <epsilon = 1e-3> (x) q = Identity (r) y = Add (x, n) }}"""
A, B = randn(2, 3, 8), randn(2, 3, 8, seed=1)


@pytest.mark.parametrize(
    ("text", "first"),
    [
        # Two activations: the residual is fused.
        ("s = Sigmoid (a) t = Sigmoid (b) x = Add (s, t)", "SkipSimplifiedLayerNormalization"),
        # Graph inputs are no residual of two computed states.
        ("x = Sigmoid (a)", "SimplifiedLayerNormalization"),
    ],
)
def test_reuse_statistics_of_rms_norms(text: str, first: str) -> None:
    model = parse(RMS.format(text), functions=True, gamma=randn(8, seed=2))
    before = run(model, a=A, b=B)
    assert ReuseStatistics()(model).modified
    assert first in ops(model)
    assert "InverseRms" not in ops(model)
    for found, expected in zip(run(model, a=A, b=B), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=1e-6)
    assert not ReuseStatistics()(model).modified


def test_reuse_statistics_of_layer_norms() -> None:
    model = parse(
        """g (float[B, S, 8] a, float[8] gamma, float[8] beta)
           => (float[B, S, 8] y, float[B, S, 1] p, float[B, S, 1] q)
           { x = Sigmoid (a)
             n = LayerNormalization <axis = -1, epsilon = 1e-3> (x, gamma, beta)
             m, r = com.otter.MeanInverseStd <epsilon = 1e-3> (x)
             y = Identity (n) p = Identity (m) q = Identity (r) }""",
        functions=True,
        gamma=randn(8, seed=2),
        beta=randn(8, seed=3),
    )
    before = run(model, a=A)
    assert ReuseStatistics()(model).modified
    assert ops(model) == ["Sigmoid", "LayerNormalization", *["Identity"] * 3]
    for found, expected in zip(run(model, a=A), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert not ReuseStatistics()(model).modified


def test_reuse_statistics_without_norms() -> None:
    assert not ReuseStatistics()(heads_model()).modified


def attention_model(rotary: bool, attributes: str = "scale = 0.3") -> ir.Model:
    """One attention of 4 heads over 2 key/value heads of size 4, causal by its mask."""
    rotate = "= RotaryEmbedding <num_heads = {}> ({}, cos, sin)" if rotary else "= Identity ({1})"
    model = parse(
        f"""g (int64[B, S] input_ids, float[B, S, 16] q0, float[B, S, 8] k0, float[B, S, 8] v,
               float[B, S, 2] cos, float[B, S, 2] sin, bool[B, 1, S, T] attention_mask,
               float[B, 2, P, 4] past_key_values__0__key,
               float[B, 2, P, 4] past_key_values__0__value)
           => (float[B, S, 16] y, float[B, 2, T, 4] present__0__key,
               float[B, 2, T, 4] present__0__value)
           {{ q {rotate.format(4, "q0")} k {rotate.format(2, "k0")}
              a, present__0__key, present__0__value = Attention <q_num_heads = 4,
                kv_num_heads = 2, {attributes}> (q, k, v, attention_mask, past_key_values__0__key,
                past_key_values__0__value) y = Identity (a) }}"""
    )
    for value in model.graph.inputs:
        if value.name == "past_key_values.0.key":
            value.type = ir.TensorType(ir.DataType.FLOAT)
    return model


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("attributes", ["scale = 0.3", "softcap = 0.0"])
def test_read_only_cache_equals_attention(rotary: bool, prefix: int, attributes: str) -> None:
    model = attention_model(rotary, attributes)
    batch, step = 2, 3
    angle = randn(batch, step, 2, seed=9)
    mask = np.random.default_rng(0).random((batch, step, prefix + step)) < 0.6
    mask[:, :, prefix:] |= np.eye(step, dtype=bool)  # every token sees itself
    inputs = {
        "input_ids": np.zeros((batch, step), np.int64),
        "q0": randn(batch, step, 16),
        "k0": randn(batch, step, 8, seed=1),
        "v": randn(batch, step, 8, seed=2),
        "cos": np.cos(angle),
        "sin": np.sin(angle),
        "past_key_values__0__key": randn(batch, 2, prefix, 4, seed=3),
        "past_key_values__0__value": randn(batch, 2, prefix, 4, seed=4),
    }
    y, key, value = run(model, **inputs, attention_mask=mask[:, None])
    assert ReadOnlyCache()(model).modified
    assert "Attention" not in ops(model)
    found = run(model, **inputs, attention_mask=mask)
    np.testing.assert_allclose(found[0], y, atol=1e-5, rtol=0)
    # The new rows alone come out; they are the tail of what Attention would have copied.
    np.testing.assert_allclose(found[1], key[:, :, prefix:], atol=1e-6, rtol=0)
    np.testing.assert_array_equal(found[2], value[:, :, prefix:])
    assert not ReadOnlyCache()(model).modified


PRODUCTS = """g (float[T, 4] x, float[T, 3] c, float[T, 2] r, float[2, 4] A__otter,
       float[2, 3] B__otter, float[2, 4] W, float[2] b) => (float[T, 2] y)
   {{ a = Transpose <perm = [1, 0]> (A__otter) m = MatMul (x, a)
     t = Transpose <perm = [1, 0]> (B__otter) n = MatMul (c, t)
     w = Transpose <perm = [1, 0]> (W) k = MatMul (x, w) {} y = Identity (z) }}"""
#: What is summed, and the ops that are left.
SUMS = {
    "products": ("z = Add (m, n)", ["Gemm", "MatMul"]),
    "bias": ("s = Add (m, n) z = Add (s, b)", ["Gemm", "Gemm"]),
    "residual": ("s = Add (m, n) z = Add (r, s)", ["Gemm", "Gemm"]),
    "both": ("s = Add (m, n) u = Add (s, b) z = Add (r, u)", ["Add", "Gemm", "Gemm"]),
    "three more": (
        "s = Add (m, b) t2 = Add (n, r) u = Add (s, t2) z = Add (b, u)",
        ["Add", "Add", "Gemm", "Gemm"],
    ),
    "read twice": ("s = Add (m, n) u = Tanh (s) z = Add (s, u)", ["Add", "Gemm", "MatMul", "Tanh"]),
    "with the base's": ("s = Add (k, n) z = Add (s, r)", ["Add", "Gemm", "MatMul"]),
}


def products_model(body: str) -> ir.Model:
    model = parse(
        PRODUCTS.format(body),
        A__otter=randn(2, 4, seed=3),
        B__otter=randn(2, 3, seed=4),
        W=randn(2, 4, seed=5),
        b=randn(2, seed=6),
    )
    for node in model.graph:
        if node.op_type != "Transpose":
            node.outputs[0].shape = ir.Shape(["T", 2])
    return model


@pytest.mark.parametrize("name", SUMS)
def test_chain_products_adds_inside_of_gemm(name: str) -> None:
    """1e-6: the same products of four numbers, added in another order."""
    body, left = SUMS[name]
    model = products_model(body)
    inputs = {"x": randn(5, 4), "c": randn(5, 3, seed=1), "r": randn(5, 2, seed=2)}
    before = run(model, **inputs)
    one = ChainProducts(lambda name: name.endswith(".otter"))
    assert one(model).modified
    RemoveUnusedNodesPass()(model)
    assert sorted(op for op in ops(model) if op not in ("Transpose", "Identity")) == left
    np.testing.assert_allclose(run(model, **inputs)[0], before[0], atol=1e-6, rtol=0)
    assert not one(model).modified


def test_chain_products_leaves_the_base_alone() -> None:
    model = products_model("s = Add (k, r) z = Add (s, b)")
    before = ops(model)
    assert not ChainProducts(lambda name: name.endswith(".otter"))(model).modified
    assert ops(model) == before


GAINED = """g (float[T, 3] s, float[T, 2] c, float[3] n__otter__weight,
       float[2, 3] B__otter__from_channel, float[2, 3] D__otter__from_channel)
   => (float[T, 2] y, float[T, 2] z)
   {{ n = Mul (s, n__otter__weight) t = Transpose <perm = [1, 0]> (B__otter__from_channel)
     u = Transpose <perm = [1, 0]> (D__otter__from_channel)
     y = Gemm (n, t, c) {} }}"""


def gained_model(last: str) -> ir.Model:
    names = ("B__otter__from_channel", "D__otter__from_channel")
    matrices = {name: randn(2, 3, seed=i) for i, name in enumerate(names)}
    return parse(GAINED.format(last), n__otter__weight=randn(3, seed=5), **matrices)


def test_fold_gains_multiplies_the_columns_of_every_reader() -> None:
    """1e-6: products of three numbers, rounded in another order."""
    model = gained_model("z = MatMul (n, u)")
    inputs = {"s": randn(4, 3, seed=6), "c": randn(4, 2, seed=7)}
    before = run(model, **inputs)
    assert FoldGains()(model).modified
    assert "Mul" not in ops(model)
    RemoveUnusedNodesPass()(model)
    assert set(model.graph.initializers) == {
        f"{name}.otter.from_channel_by_n.otter.weight" for name in "BD"
    }
    for found, expected in zip(run(model, **inputs), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=0)
    assert not FoldGains()(model).modified


@pytest.mark.parametrize("last", ["z = Add (n, n) ", "v = Relu (n) z = MatMul (v, u)"])
def test_fold_gains_needs_a_matrix_in_every_reader(last: str) -> None:
    model = gained_model(last)
    before = ops(model)
    assert not FoldGains()(model).modified
    assert ops(model) == before
