"""L1: passes that change how weights are stored: fires, does not fire, output equal.

Where values only move, outputs are compared bit for bit. Where a product is computed in another
order, 1e-5 absolute on values of order one to ten.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from otter_export.errors import CheckpointError, UnsupportedError
from otter_export.graph.emit import lazy_tensor
from otter_export.graph.passes.fold_transposes import FoldTransposes
from otter_export.graph.passes.half_storage import HalfStorage
from otter_export.graph.passes.quantize_weights import BLOCK_SIZE, QuantizeWeights
from otter_export.graph.passes.stack_siblings import StackSiblings
from otter_export.graph.passes.tie_embedding import TieEmbedding
from tests.graph.text import ops, parse, randn, run

Array = np.ndarray[Any, Any]
PROJECTION = """g (float[T, 256] x, float[6, 256] w) => (float[T, 6] y)
    { t = Transpose <perm = [1, 0]> (w) y = MatMul (x, t) }"""


def test_fold_transposes_stores_weights_as_they_are_read() -> None:
    model = parse(PROJECTION, w=randn(6, 256))
    x = randn(3, 256, seed=1)
    before = run(model, x=x)
    assert FoldTransposes()(model).modified
    assert ops(model) == ["MatMul"]
    assert list(model.graph.initializers) == ["w_t"]
    np.testing.assert_array_equal(run(model, x=x), before)
    assert not FoldTransposes()(model).modified


def test_fold_transposes_keeps_a_weight_with_another_use() -> None:
    model = parse(
        """g (int64[T] i, float[6, 8] w, float[T, 8] x) => (float[T, 6] y, float[T, 8] z)
           { t = Transpose <perm = [1, 0]> (w) y = MatMul (x, t) z = Gather (w, i) }""",
        w=randn(6, 8),
    )
    FoldTransposes()(model)
    assert set(model.graph.initializers) == {"w", "w_t"}


def test_fold_transposes_leaves_activations_alone() -> None:
    model = parse("g (float[A, B] x) => (float[B, A] y) { y = Transpose <perm = [1, 0]> (x) }")
    assert not FoldTransposes()(model).modified
    assert ops(model) == ["Transpose"]


def test_half_storage_casts_matrices_and_gathered_rows() -> None:
    model = parse(
        """g (int64[T] i, float[9, 8] e__weight, float[8, 4] m__weight,
              float[4, 4] c__otter__weight) => (float[T, 4] y)
           { x = Gather (e__weight, i) h = MatMul (x, m__weight)
             y = MatMul (h, c__otter__weight) }""",
        e__weight=randn(9, 8),
        m__weight=randn(8, 4, seed=1),
        c__otter__weight=randn(4, 4, seed=2),
    )
    ids = np.array([1, 8, 0])
    assert HalfStorage(lambda name: ".otter." not in name)(model).modified
    types = {name: v.dtype for name, v in model.graph.initializers.items()}
    assert types == {
        "e.weight_half": ir.DataType.FLOAT16,
        "m.weight_half": ir.DataType.FLOAT16,
        "c.otter.weight": ir.DataType.FLOAT,
    }
    # The rows are widened, not the whole table: Gather comes before its Cast.
    assert ops(model)[:2] == ["Gather", "Cast"]
    e, m = (a.astype(np.float16).astype(np.float32) for a in (randn(9, 8), randn(8, 4, seed=1)))
    expected = e[ids] @ m @ randn(4, 4, seed=2)
    np.testing.assert_allclose(run(model, i=ids)[0], expected, atol=1e-5, rtol=0)
    assert not HalfStorage(lambda name: ".otter." not in name)(model).modified


@pytest.mark.parametrize("bits", [8, 4])
def test_quantize_weights_is_the_stated_arithmetic(bits: int) -> None:
    """Against blocks, scales and rounding written out in numpy, not against a loose bound.

    MatMulNBits at accuracy level 4 also rounds the activations to 8 bits; rows of integers with a
    largest magnitude of 127 in every block survive that exactly, so only the weights' rounding is
    left, and outputs agree to float32 rounding.
    """
    weight = randn(6, 256)
    model = parse(PROJECTION, w=weight)
    assert QuantizeWeights(bits, lambda name: False)(model).modified
    assert ops(model) == ["MatMulNBits"]
    assert set(model.graph.initializers) == {f"w_int{bits}", f"w_int{bits}_scales"}
    x = np.random.default_rng(1).integers(-127, 128, (3, 256)).astype(np.float32)
    x[:, ::BLOCK_SIZE] = 127
    expected = x @ dequantized(weight, bits).T
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=0, atol=2e-3)
    assert np.abs(expected - x @ weight.T).max() > 0.1, "the weights' rounding does not show"


def test_quantize_weights_keeps_what_it_is_told_to() -> None:
    model = parse(PROJECTION, w=randn(6, 256))
    assert not QuantizeWeights(8, lambda name: name == "w")(model).modified
    assert ops(model) == ["Transpose", "MatMul"]


def test_quantize_weights_leaves_products_of_activations() -> None:
    model = parse("g (float[A, B] x, float[B, C] z) => (float[A, C] y) { y = MatMul (x, z) }")
    assert not QuantizeWeights(8, lambda name: False)(model).modified


SIBLINGS = """g (float[B, S, 8] x, float[B, S, 4] c,
       float[3, 8] q__otter__from_base, float[3, 4] q__otter__from_channel,
       float[2, 8] k__otter__from_base, float[2, 4] k__otter__from_channel)
   => (float[B, S, 3] q, float[B, S, 2] k)
   {{ t1 = Transpose <perm = [1, 0]> (q__otter__from_base) a = MatMul (x, t1)
      t2 = Transpose <perm = [1, 0]> (q__otter__from_channel) b = MatMul (c, t2)
      t3 = Transpose <perm = [1, 0]> (k__otter__from_base) d = MatMul ({}, t3)
      t4 = Transpose <perm = [1, 0]> (k__otter__from_channel) e = MatMul (c, t4)
      q1 = Add (a, b) k1 = Add (d, e) q = Identity (q1) k = Identity (k1) }}"""


def siblings(reads: str) -> ir.Model:
    return parse(
        SIBLINGS.format(reads),
        q__otter__from_base=randn(3, 8),
        q__otter__from_channel=randn(3, 4, seed=1),
        k__otter__from_base=randn(2, 8, seed=2),
        k__otter__from_channel=randn(2, 4, seed=3),
    )


def test_stack_siblings_makes_one_product_of_each_stream() -> None:
    model = siblings("x")
    x, c = randn(2, 3, 8, seed=4), randn(2, 3, 4, seed=5)
    before = run(model, x=x, c=c)
    assert StackSiblings()(model).modified
    assert ops(model).count("MatMul") == 2
    assert ops(model).count("Split") == 1
    for found, expected in zip(run(model, x=x, c=c), before, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    assert not StackSiblings()(model).modified


def test_stack_siblings_needs_the_same_input() -> None:
    model = siblings("x2")
    double = ir.node("Add", [model.graph.inputs[0]] * 2, name="double")
    double.outputs[0].name = "x2"
    model.graph.insert_before(model.graph[0], double)
    for node in model.graph:
        for index, value in enumerate(node.inputs):
            if value is not None and value.name == "x2":
                node.replace_input_with(index, double.outputs[0])
    assert not StackSiblings()(model).modified


TIED = """g (int64[T] ids, float[9, 4] E, float[4, 9] H) => (float[T, 9] y)
    { x = Gather (E, ids) y = MatMul (x, H) }"""


def test_tie_embedding_gathers_from_the_heads_columns() -> None:
    table = randn(9, 4)
    model = parse(TIED, E=table, H=np.ascontiguousarray(table.T))
    model.graph[0].outputs[0].shape = ir.Shape(["T", 4])
    ids = np.array([0, 8, 3])
    before = run(model, ids=ids)
    assert TieEmbedding("E", "H")(model).modified
    assert list(model.graph.initializers) == ["H"]
    np.testing.assert_array_equal(run(model, ids=ids), before)
    assert not TieEmbedding("E", "H")(model).modified


def test_tie_embedding_needs_flat_ids_and_both_weights() -> None:
    table = randn(9, 4)
    model = parse(TIED, E=table, H=np.ascontiguousarray(table.T))
    model.graph[0].outputs[0].shape = ir.Shape(["B", "S", 4])
    assert not TieEmbedding("E", "H")(model).modified
    assert not TieEmbedding("E", "missing")(model).modified


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_an_error(bad: float) -> None:
    values = np.array([[1.0, bad]], np.float32)
    tensor = lazy_tensor("model.norm.weight", ir.DataType.FLOAT, (1, 2), lambda: values)
    with pytest.raises(CheckpointError, match=r"tensor model\.norm\.weight holds NaN or infinity"):
        tensor.numpy()


@pytest.mark.parametrize("large", [7e4, -7e4])
def test_a_weight_beyond_float16_is_an_error(large: float) -> None:
    values = np.array([1.0, large], np.float32)
    tensor = lazy_tensor("model.norm.weight", ir.DataType.FLOAT16, (2,), lambda: values)
    with pytest.raises(UnsupportedError, match=r"model\.norm\.weight holds 70000.*65504.*fp32"):
        tensor.numpy()
    # The same values fit where they are kept in float32.
    wide = lazy_tensor("model.norm.weight", ir.DataType.FLOAT, (2,), lambda: values)
    np.testing.assert_array_equal(wide.numpy(), values)


def dequantized(weight: Array, bits: int) -> Array:
    """Symmetric blocks of 128 along the input: the extreme value maps to -2^(bits-1)."""
    rows, columns = weight.shape
    blocks = weight.reshape(rows, columns // BLOCK_SIZE, BLOCK_SIZE)
    index = np.abs(blocks).argmax(-1, keepdims=True)
    extreme = np.take_along_axis(blocks, index, -1)
    half = 2 ** (bits - 1)
    scale = extreme / -half
    codes = np.clip(np.rint(blocks / scale), -half, half - 1)
    return np.asarray((codes * scale).reshape(rows, columns))
