"""L1: passes of the TensorRT pipeline: fires, does not fire, output equal.

Values only move or are computed by the same ops here, so outputs are compared bit for bit, except
for attention (1e-5: the softmax runs over the whole capacity) and norms (1e-6: another kernel).
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from otter_export.errors import UnsupportedError
from otter_export.graph.passes.fold_transposes import FoldTransposes
from otter_export.graph.passes.fuse_projections import FuseProjections
from otter_export.graph.passes.in_place_cache import InPlaceCache
from otter_export.graph.passes.keep_rows import KeepRows
from otter_export.graph.passes.separate_masks import SeparateMasks
from otter_export.graph.passes.weight_only import WeightOnly, encode
from otter_export.graph.passes.write_out_norms import WriteOutNorms
from otter_export.graph.pipeline import run_passes
from otter_export.precision import WeightFormat
from tests.graph.test_layout_passes import IDS, attention_model, heads_model
from tests.graph.text import ops, parse, randn, run

Array = np.ndarray[Any, Any]


def test_keep_rows_gathers_what_each_sequence_names() -> None:
    model = heads_model()
    logits, reward = run(model, input_ids=IDS)
    assert KeepRows()(model).modified
    assert [v.name for v in model.graph.inputs] == ["input_ids", "kept_rows"]
    kept = np.array([[2, 0], [1, 1]])
    found = run(model, input_ids=IDS, kept_rows=kept)
    for b in range(2):
        np.testing.assert_array_equal(found[0][b], logits[b, kept[b]])
        np.testing.assert_array_equal(found[1][b], reward[b, kept[b]])
    assert str(model.graph.outputs[0].shape) == "[batch,kept,9]"
    assert not KeepRows()(model).modified


def test_keep_rows_of_a_graph_without_heads() -> None:
    model = parse("g (float[B, S, 4] x) => (float[B, S, 4] y) { y = Sigmoid (x) }")
    assert not KeepRows()(model).modified
    assert [v.name for v in model.graph.inputs] == ["x"]


CAPACITY, STEP = 8, 3


def cached_inputs(rotary: bool, lengths: list[int]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Inputs of the model before, with a prefix of the longest length, and of the model after."""
    batch, longest = len(lengths), max(lengths)
    angle = randn(batch, STEP, 2, seed=9)
    shared = {
        "input_ids": np.zeros((batch, STEP), np.int64),
        "q0": randn(batch, STEP, 16),
        "k0": randn(batch, STEP, 8, seed=1),
        "v": randn(batch, STEP, 8, seed=2),
        "cos": np.cos(angle),
        "sin": np.sin(angle),
    }
    tree = (np.random.default_rng(0).random((batch, STEP, STEP)) < 0.6) | np.eye(STEP, dtype=bool)
    caches = {kind: randn(batch, 2, CAPACITY, 4, seed=i) for i, kind in enumerate(("key", "value"))}
    before, after = dict(shared), dict(shared)
    old = np.zeros((batch, 1, STEP, longest + STEP), bool)
    new = np.zeros((batch, 1, STEP, CAPACITY), bool)
    for b, length in enumerate(lengths):
        old[b, 0, :, :length] = new[b, 0, :, :length] = True
        old[b, 0, :, longest:] = new[b, 0, :, length : length + STEP] = tree[b]
    before["attention_mask"], after["attention_mask"] = old, new
    after["write_indices"] = np.array(lengths)
    for kind, cache in caches.items():
        before[f"past_key_values__0__{kind}"] = cache[:, :, :longest]
        after[f"past_key_values__0__{kind}"] = cache
    return before, after


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize("lengths", [[0, 0], [3, 5], [5, 1]])
def test_in_place_cache_equals_attention(rotary: bool, lengths: list[int]) -> None:
    model = attention_model(rotary)
    before, after = cached_inputs(rotary, lengths)
    y, key, value = run(model, **before)
    assert InPlaceCache(CAPACITY)(model).modified
    assert ops(model).count("TensorScatter") == 2
    found = run(model, **after)
    np.testing.assert_allclose(found[0], y, atol=1e-5, rtol=0)
    longest = max(lengths)
    for present, expected, kind in ((found[1], key, "key"), (found[2], value, "value")):
        untouched = after[f"past_key_values__0__{kind}"].copy()
        for b, length in enumerate(lengths):
            untouched[b, :, length : length + STEP] = expected[b, :, longest:]
        np.testing.assert_allclose(present, untouched, atol=1e-6, rtol=0)
    assert not InPlaceCache(CAPACITY)(model).modified


def test_in_place_cache_describes_what_it_changes() -> None:
    model = attention_model(True)
    InPlaceCache(CAPACITY)(model)
    inputs = {v.name: v for v in model.graph.inputs}
    assert str(inputs["attention_mask"].shape) == "[batch,1,step,8]"
    assert str(inputs["past_key_values.0.key"].shape) == "[batch,2,8,4]"
    assert inputs["write_indices"].dtype == ir.DataType.INT64
    assert [v.name for v in model.graph.outputs] == ["y", "present.0.key", "present.0.value"]
    assert str(model.graph.outputs[1].shape) == "[batch,2,8,4]"


def test_in_place_cache_of_a_graph_without_attention() -> None:
    assert not InPlaceCache(CAPACITY)(heads_model()).modified


TWO_ATTENTIONS = """g (float[B, 1, S, 4] q, bool[B, 1, S, 6] attention_mask, int64[B] slots,
    float[B, 1, 6, 4] past_key_values__0__key, float[B, 1, 6, 4] {1}_key_values__0__key)
  => (float[B, 1, S, 4] y, float[B, 1, S, 4] z)
  {{ k = TensorScatter <axis = -2> (past_key_values__0__key, q, slots)
     c = TensorScatter <axis = -2> ({1}_key_values__0__key, q, slots)
     y = Attention (q, k, k, attention_mask) z = Attention (q, c, c, attention_mask) }}"""


def test_separate_masks_leaves_base_and_channel_no_mask_in_common() -> None:
    model = parse(TWO_ATTENTIONS.format("", "otter"))
    inputs = {
        "q": randn(2, 1, 3, 4),
        "attention_mask": np.random.default_rng(0).random((2, 1, 3, 6)) < 0.7,
        "slots": np.array([0, 3]),
        "past_key_values__0__key": randn(2, 1, 6, 4, seed=1),
        "otter_key_values__0__key": randn(2, 1, 6, 4, seed=2),
    }
    inputs["attention_mask"][..., 0] = True
    before = run(model, **inputs)
    assert SeparateMasks()(model).modified
    masks = [str(n.inputs[3].name) for n in model.graph if n.op_type == "Attention"]  # type: ignore[union-attr]
    assert masks == ["attention_mask", "attention_mask.channel"]
    for found, expected in zip(run(model, **inputs), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not SeparateMasks()(model).modified


def test_separate_masks_of_windows() -> None:
    """What a window narrows is not what layers without one read, and both have their twins."""
    caches = [f"{stem}_key_values__{i}" for i in range(3) for stem in ("past", "otter")]
    lines = [
        f"""c{n} = TensorScatter <axis = -2> ({cache}__key, q, slots)
            y{n} = Attention (q, c{n}, c{n}, {mask})"""
        for n, (cache, mask) in enumerate(
            zip(caches, [*["near"] * 2, *["attention_mask"] * 2, *["near"] * 2], strict=True)
        )
    ]
    model = parse(
        f"""g (float[B, 1, S, 4] q, bool[B, 1, S, 6] attention_mask, bool[B, 1, S, 6] window,
               int64[B] slots{"".join(f", float[B, 1, 6, 4] {c}__key" for c in caches)})
           => ({", ".join(f"float[B, 1, S, 4] y{n}" for n in range(6))})
           {{ near = And (attention_mask, window) {" ".join(lines)} }}"""
    )
    inputs = {
        "q": randn(2, 1, 3, 4),
        "attention_mask": np.ones((2, 1, 3, 6), bool),
        "window": np.tile(np.arange(6) > 2, (2, 1, 3, 1)),
        "slots": np.array([0, 3]),
        **{f"{cache}__key": randn(2, 1, 6, 4, seed=n) for n, cache in enumerate(caches)},
    }
    before = run(model, **inputs)
    assert SeparateMasks()(model).modified
    masks = [str(n.inputs[3].name) for n in model.graph if n.op_type == "Attention"]  # type: ignore[union-attr]
    assert masks[:2] == masks[4:] == ["near", "near.channel"]
    assert masks[2:4] == ["attention_mask", "attention_mask.channel"]
    (window,) = (n for n in model.graph if n.op_type == "And")
    assert window.inputs[0] is not None and window.inputs[0].name == "attention_mask.near"
    for found, expected in zip(run(model, **inputs), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not SeparateMasks()(model).modified


def test_separate_masks_of_a_base_alone() -> None:
    model = parse(TWO_ATTENTIONS.format("", "more"))
    assert not SeparateMasks()(model).modified


RMS = """g (float[B, S, 8] a, float[8] gamma) => (float[B, S, 1] q, float[B, S, 8] y)
   { x = Sigmoid (a) n = RMSNormalization <axis = -1, epsilon = 1e-3> (x, gamma)
     r = com.otter.InverseRms <epsilon = 1e-3> (x) q = Identity (r) y = Add (x, n) }"""
LAYER = """g (float[B, S, 8] a, float[8] gamma, float[8] beta)
   => (float[B, S, 1] p, float[B, S, 1] q, float[B, S, 8] y)
   { x = Sigmoid (a) n = LayerNormalization <axis = -1, epsilon = 1e-3> (x, gamma, beta)
     m, r = com.otter.MeanInverseStd <epsilon = 1e-3> (x)
     p = Identity (m) q = Identity (r) y = Add (x, n) }"""


@pytest.mark.parametrize(("text", "function"), [(RMS, "InverseRms"), (LAYER, "MeanInverseStd")])
def test_write_out_norms_shares_the_statistics(text: str, function: str) -> None:
    weights = {"gamma": randn(8, seed=2)} | ({"beta": randn(8, seed=3)} if text is LAYER else {})
    model = parse(text, functions=True, **weights)
    a = randn(2, 3, 8)
    before = run(model, a=a)
    assert WriteOutNorms()(model).modified
    assert ops(model).count(function) == 1
    assert not {"RMSNormalization", "LayerNormalization"} & set(ops(model))
    for found, expected in zip(run(model, a=a), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6, rtol=1e-6)
    assert not WriteOutNorms()(model).modified


def test_two_norms_of_one_state_share_statistics_that_come_first() -> None:
    """A parallel residual. ONNX wants nodes in order, which ONNX Runtime does not insist on."""
    model = parse(
        """g (float[B, S, 8] x, float[8] gamma) => (float[B, S, 8] y)
           { n = RMSNormalization <axis = -1, epsilon = 1e-3> (x, gamma) u = Relu (n)
             o = RMSNormalization <axis = -1, epsilon = 1e-3> (x, gamma)
             r = com.otter.InverseRms <epsilon = 1e-3> (x) v = Mul (o, r) y = Add (u, v) }""",
        functions=True,
        gamma=randn(8, seed=2),
    )
    x = randn(2, 3, 8)
    before = run(model, x=x)
    assert WriteOutNorms()(model).modified
    assert ops(model).count("InverseRms") == 1
    made: set[ir.Value] = {*model.graph.inputs, *model.graph.initializers.values()}
    for node in model.graph:
        assert {value for value in node.inputs if value is not None} <= made, node.name
        made.update(node.outputs)
    np.testing.assert_allclose(run(model, x=x)[0], before[0], atol=1e-6, rtol=1e-6)


def test_write_out_norms_takes_half_statistics_in_float32() -> None:
    """300 squared is beyond float16; the mean of squares must not be computed in it."""
    model = parse(
        """g (float16[B, S, 8] x, float16[8] gamma) => (float16[B, S, 8] y)
           { n = RMSNormalization <axis = -1, epsilon = 1e-5> (x, gamma) y = Relu (n) }""",
        gamma=np.ones(8, np.float16),
    )
    x = np.full((1, 1, 8), 300, np.float16)
    assert WriteOutNorms()(model).modified
    np.testing.assert_allclose(run(model, x=x)[0], np.ones((1, 1, 8)), rtol=1e-3)


PROJECTION = """g (float[B, S, 8] x, float[B, S, 4] c, float[6, 8] p__weight,
      float[3, 8] p__otter__from_base, float[3, 4] p__otter__from_channel {0})
   => (float[B, S, 6] y, float[B, S, 3] z)
   {{ tw = Transpose <perm = [1, 0]> (p__weight) u = MatMul (x, tw)
      ta = Transpose <perm = [1, 0]> (p__otter__from_base) ua = MatMul (x, ta)
      tb = Transpose <perm = [1, 0]> (p__otter__from_channel) ub = MatMul (c, tb)
      s = Add (ua, ub) {1} }}"""
BIASES = (
    ", float[6] p__bias, float[3] p__otter__bias",
    "v = Add (u, p__bias) t = Add (s, p__otter__bias) y = Relu (v) z = Relu (t)",
)
PLAIN = ("", "y = Relu (u) z = Relu (s)")
WEIGHTS = {
    "p__weight": randn(6, 8),
    "p__otter__from_base": randn(3, 8, seed=1),
    "p__otter__from_channel": randn(3, 4, seed=2),
}
VECTORS = {"p__bias": randn(6, seed=3), "p__otter__bias": randn(3, seed=4)}
NAMES = {"p.otter.from_base": "p.weight"}
X, C = randn(2, 3, 8, seed=5), randn(2, 3, 4, seed=6)


@pytest.mark.parametrize("biased", [False, True])
def test_fuse_projections_names_the_pattern(biased: bool) -> None:
    text = PROJECTION.format(*(BIASES if biased else PLAIN))
    model = parse(text, functions=True, **WEIGHTS, **(VECTORS if biased else {}))
    before = run(model, x=X, c=C)
    assert FuseProjections(NAMES)(model).modified
    assert ops(model) == ["OtterLinear", "Relu", "Relu"]
    names = [str(v.name) for v in model.graph[0].inputs if v is not None]
    expected = ["x", "c", "p.weight", "p.otter.from_base", "p.otter.from_channel"]
    assert names == expected + (["p.bias", "p.otter.bias"] if biased else [])
    for found, value in zip(run(model, x=X, c=C), before, strict=True):
        np.testing.assert_array_equal(found, value)
    assert not FuseProjections(NAMES)(model).modified


def test_fuse_projections_with_several_readers_of_the_base() -> None:
    """``silu(y) = y * sigmoid(y)`` reads y twice."""
    text = PROJECTION.format("", "w = Sigmoid (u) y = Mul (u, w) z = Relu (s)")
    model = parse(text, functions=True, **WEIGHTS)
    before = run(model, x=X, c=C)
    assert FuseProjections(NAMES)(model).modified
    assert ops(model)[0] == "OtterLinear"
    for found, value in zip(run(model, x=X, c=C), before, strict=True):
        np.testing.assert_array_equal(found, value)


def test_fuse_projections_with_one_bias_leaves_it_outside() -> None:
    text = PROJECTION.format(", float[6] p__bias", "y = Add (u, p__bias) z = Relu (s)")
    model = parse(text, functions=True, **WEIGHTS, p__bias=VECTORS["p__bias"])
    before = run(model, x=X, c=C)
    assert FuseProjections(NAMES)(model).modified
    assert ops(model) == ["OtterLinear", "Add", "Relu"]
    for found, value in zip(run(model, x=X, c=C), before, strict=True):
        np.testing.assert_array_equal(found, value)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ("unknown", {}),
        # Another reader of A x: the node would have to give it too.
        ("shared", NAMES),
        # W is stored in codes.
        ("codes", NAMES),
    ],
)
def test_fuse_projections_leaves_other_sums_alone(change: str, names: dict[str, str]) -> None:
    tail = "y = Relu (u) r = Relu (ua) z = Add (s, r)" if change == "shared" else PLAIN[1]
    model = parse(PROJECTION.format("", tail), functions=True, **WEIGHTS)
    if change == "codes":
        WeightOnly(lambda name: WeightFormat(8, None) if name == "p.weight" else None)(model)
    before = ops(model)
    assert not FuseProjections(names)(model).modified
    assert ops(model) == before


INT8, INT4 = WeightFormat(8, None), WeightFormat(4, 32)
DENSE = """g (float[T, 96] x, float[6, 96] w) => (float[T, 6] y)
    { t = Transpose <perm = [1, 0]> (w) y = MatMul (x, t) }"""


@pytest.mark.parametrize("stored", [INT8, INT4, WeightFormat(8, 64)])
def test_weight_only_is_the_stated_arithmetic(stored: WeightFormat) -> None:
    """Scales and rounding written out here, one block after the other."""
    weight = randn(6, 96)
    weight[0] = 0
    model = parse(DENSE, w=weight)
    assert WeightOnly(lambda name: stored)(model).modified
    assert ops(model) == ["DequantizeLinear", "MatMul"]
    block = {None: 96, 32: 32, 64: 32}[stored.block]  # 64 does not divide 96
    dense = np.zeros_like(weight)
    largest = 127 if stored.bits == 8 else 7
    for row in range(6):
        for start in range(0, 96, block):
            values = weight[row, start : start + block]
            scale = np.float32(np.abs(values).max()) / np.float32(largest)
            if scale > 0:
                dense[row, start : start + block] = np.rint(values / scale) * scale
    names = {"y": [f"w_int{stored.bits}", f"w_int{stored.bits}_scales"]}
    assert list(model.graph.initializers) == names["y"]
    x = randn(3, 96, seed=1)
    np.testing.assert_allclose(run(model, x=x)[0], x @ dense.T, atol=1e-5, rtol=0)
    assert not WeightOnly(lambda name: stored)(model).modified


def test_weight_only_leaves_widths_that_no_block_divides() -> None:
    model = parse(DENSE.replace("96", "100"), w=randn(6, 100))
    assert not WeightOnly(lambda name: INT4)(model).modified
    assert WeightOnly(lambda name: INT8)(model).modified  # one scale a row: any width


def test_weight_only_leaves_what_is_not_chosen_and_what_is_gathered() -> None:
    model = parse(
        """g (int64[T] i, float[6, 32] w, float[6, 32] e) => (float[T, 32] z, float[T, 6] y)
           { z = Gather (e, i) t = Transpose <perm = [1, 0]> (w) y = MatMul (z, t) }""",
        w=randn(6, 32),
        e=randn(6, 32),
    )
    assert not WeightOnly(lambda name: None)(model).modified
    assert WeightOnly(lambda name: INT8)(model).modified
    assert set(model.graph.initializers) == {"e", "w_int8", "w_int8_scales"}


def test_weight_only_of_a_tied_weight_keeps_the_table() -> None:
    model = parse(
        """g (int64[T] i, float[6, 32] e) => (float[T, 6] y)
           { z = Gather (e, i) t = Transpose <perm = [1, 0]> (e) y = MatMul (z, t) }""",
        e=randn(6, 32),
    )
    assert WeightOnly(lambda name: INT8)(model).modified
    assert set(model.graph.initializers) == {"e", "e_int8", "e_int8_scales"}


@pytest.mark.parametrize(
    ("columns", "block"), [(576, 32), (1536, 32), (48, 16), (8, None), (100, None), (32, 32)]
)
def test_block_of_a_width(columns: int, block: int | None) -> None:
    assert INT4.block_of(columns) == block


def test_encode_rounds_by_the_scale_that_is_stored() -> None:
    """A float16 scale is rounded first, then the codes: else both roundings would add up."""
    weight = randn(4, 64).astype(np.float16)
    codes, scales = encode(weight, 4, 32)
    assert codes.dtype == ml_dtypes.int4 and codes.shape == (64, 4)
    assert scales.dtype == np.float16 and scales.shape == (2, 4)
    wide = np.repeat(scales.astype(np.float32), 32, axis=0)
    error = np.abs(codes.astype(np.float32) * wide - weight.T.astype(np.float32))
    # Half a step; 1 % of a step more where the rounded scale leaves the largest weight outside.
    assert (error <= 0.51 * wide).all()


def test_encode_of_weights_that_float16_scales_cannot_reach() -> None:
    weight = np.full((1, 32), 1e-8, np.float32).astype(np.float16)
    codes, scales = encode(weight, 8, 32)
    assert np.isfinite(scales.astype(np.float32)).all() and not codes.any()


def test_fold_transposes_can_leave_a_tied_embedding() -> None:
    model = parse(
        """g (int64[T] i, float[6, 8] w, float[4, 8] m) => (float[T, 6] y, float[T, 4] z)
           { x = Gather (w, i) t = Transpose <perm = [1, 0]> (w) y = MatMul (x, t)
             s = Transpose <perm = [1, 0]> (m) z = MatMul (x, s) }""",
        w=randn(6, 8),
        m=randn(4, 8, seed=1),
    )
    ids = np.array([1, 5])
    before = run(model, i=ids)
    assert FoldTransposes(shared=False)(model).modified
    assert set(model.graph.initializers) == {"w", "m_t"}
    assert ops(model).count("Transpose") == 1
    for found, expected in zip(run(model, i=ids), before, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert not FoldTransposes(shared=False)(model).modified


def test_what_a_pass_refuses_is_its_own_error() -> None:
    """One line for the user, without the machinery's traceback around it."""

    class Refusing(ir.passes.InPlacePass):
        def call(self, model: ir.Model) -> ir.passes.PassResult:
            raise UnsupportedError("no such thing")

    with pytest.raises(UnsupportedError, match="no such thing"):
        run_passes(heads_model(), [Refusing()])
