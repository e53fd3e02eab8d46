"""L1: passes that change how weights are stored: fires, does not fire, output equal.

Where values only move, outputs are compared bit for bit. Where a product is computed in another
order, 1e-5 absolute on values of order one to ten.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    DefaultWeightOnlyQuantizer,
)

from otter_export.errors import CheckpointError, UnsupportedError
from otter_export.graph.block_codes import quantize
from otter_export.graph.emit import lazy_tensor
from otter_export.graph.passes.fold_transposes import FoldTransposes
from otter_export.graph.passes.gemm_weights import GemmWeights
from otter_export.graph.passes.half_storage import HalfStorage
from otter_export.graph.passes.quantize_weights import QuantizeWeights
from otter_export.precision import WeightFormat
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


def test_gemm_weights_reads_them_as_they_are_stored() -> None:
    """Bit for bit: ONNX Runtime packs both layouts to the same bytes."""
    model = parse(PROJECTION, w=randn(6, 256))
    x = randn(3, 256, seed=1)
    before = run(model, x=x)
    assert GemmWeights("w".__eq__)(model).modified
    assert ops(model) == ["Gemm"]
    assert list(model.graph.initializers) == ["w"]
    np.testing.assert_array_equal(run(model, x=x), before)
    assert not GemmWeights("w".__eq__)(model).modified


BIASED = """g (float[T, 8] x, float[6, 8] w, float[6] b, float[T, 6] z) => (float[T, 6] y)
    {{ t = Transpose <perm = [1, 0]> (w) p = MatMul (x, t) {rest} }}"""


def test_gemm_weights_takes_the_bias_in() -> None:
    model = parse(BIASED.format(rest="y = Add (b, p)"), w=randn(6, 8), b=randn(6, seed=2))
    feeds = {"x": randn(3, 8, seed=1), "z": randn(3, 6, seed=3)}
    before = run(model, **feeds)
    assert GemmWeights("w".__eq__)(model).modified
    assert ops(model) == ["Gemm"]
    np.testing.assert_array_equal(run(model, **feeds), before)


@pytest.mark.parametrize(
    "rest", ["y = Add (p, z)", "s = Add (p, b) y = Mul (s, p)"], ids=["a state", "read twice"]
)
def test_gemm_weights_leaves_other_sums(rest: str) -> None:
    model = parse(BIASED.format(rest=rest), w=randn(6, 8), b=randn(6, seed=2))
    feeds = {"x": randn(3, 8, seed=1), "z": randn(3, 6, seed=3)}
    before = run(model, **feeds)
    assert GemmWeights("w".__eq__)(model).modified
    assert ops(model)[:2] == ["Gemm", "Add"]
    np.testing.assert_allclose(run(model, **feeds)[0], before[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("x", ["float[B, S, 256] x", "float[256] x"])
def test_gemm_weights_needs_two_dimensions(x: str) -> None:
    y = "float[B, S, 6] y" if "B" in x else "float[6] y"
    model = parse(
        PROJECTION.replace("float[T, 256] x", x).replace("float[T, 6] y", y), w=randn(6, 256)
    )
    assert not GemmWeights("w".__eq__)(model).modified


def test_gemm_weights_leaves_what_it_is_not_told_to_take() -> None:
    model = parse(PROJECTION, w=randn(6, 256))
    assert not GemmWeights("v".__eq__)(model).modified
    assert ops(model) == ["Transpose", "MatMul"]


def test_gemm_weights_shares_a_tied_embedding() -> None:
    model = parse(
        """g (int64[T] i, float[6, 8] w) => (float[T, 6] y)
           { x = Gather (w, i) t = Transpose <perm = [1, 0]> (w) y = MatMul (x, t) }""",
        w=randn(6, 8),
    )
    model.graph[0].outputs[0].shape = ir.Shape(["T", 8])
    GemmWeights("w".__eq__)(model)
    assert ops(model) == ["Gather", "Gemm"]
    assert list(model.graph.initializers) == ["w"]


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


#: As in the tables of precisions.
BLOCK_SIZE = 128
INT8, INT4 = WeightFormat(8, BLOCK_SIZE), WeightFormat(4, BLOCK_SIZE, symmetric=False)
FORMATS = (INT8, INT4, WeightFormat(4, BLOCK_SIZE))


@pytest.mark.parametrize("columns", [256, 320, 100])
@pytest.mark.parametrize("stored", FORMATS)
def test_quantize_weights_is_the_stated_arithmetic(stored: WeightFormat, columns: int) -> None:
    """Against blocks, scales and rounding written out in numpy, not against a loose bound.

    MatMulNBits at accuracy level 4 also rounds the activations to 8 bits; rows of integers with a
    largest magnitude of 127 in every block survive that exactly, so only the weights' rounding is
    left, and outputs agree to float32 rounding. 320 columns are an odd number of blocks, the last
    of them not whole, so that a byte of zero points is half used.
    """
    weight = randn(6, columns)
    weight[0] = 0
    weight[1] = np.abs(weight[1]) + 1  # a range without zero
    model = parse(PROJECTION.replace("256", str(columns)), w=weight)
    assert QuantizeWeights(lambda name: stored)(model).modified
    assert ops(model) == ["MatMulNBits"]
    suffixes = ["", "_scales"] + ([] if stored.symmetric else ["_zero_points"])
    assert list(model.graph.initializers) == [f"w_int{stored.bits}{s}" for s in suffixes]
    x = np.random.default_rng(1).integers(-127, 128, (3, columns)).astype(np.float32)
    x[:, ::BLOCK_SIZE] = 127
    expected = x @ dequantized(weight, stored).T
    np.testing.assert_allclose(run(model, x=x)[0], expected, rtol=0, atol=2e-3)
    assert np.abs(expected - x @ weight.T).max() > 0.1, "the weights' rounding does not show"


def test_quantize_weights_keeps_what_it_is_told_to() -> None:
    model = parse(PROJECTION, w=randn(6, 256))
    assert not QuantizeWeights(lambda name: None if name == "w" else INT8)(model).modified
    assert ops(model) == ["Transpose", "MatMul"]


def test_quantize_weights_leaves_products_of_activations() -> None:
    model = parse("g (float[A, B] x, float[B, C] z) => (float[A, C] y) { y = MatMul (x, z) }")
    assert not QuantizeWeights(lambda name: INT8)(model).modified


def test_quantize_weights_chooses_by_name() -> None:
    model = parse(
        """g (float[T, 256] x, float[6, 256] w, float[9, 256] head)
           => (float[T, 6] y, float[T, 9] z)
           { t = Transpose <perm = [1, 0]> (w) y = MatMul (x, t)
             u = Transpose <perm = [1, 0]> (head) z = MatMul (x, u) }""",
        w=randn(6, 256),
        head=randn(9, 256),
    )
    QuantizeWeights(lambda name: INT8 if name == "head" else INT4)(model)
    bits = [node.attributes["bits"].as_int() for node in model.graph]
    assert bits == [4, 8]
    assert [len(node.inputs) for node in model.graph] == [4, 3]


def test_quantize_packs_zero_points_low_half_first() -> None:
    """Each block has a range of its own, so that zero points in another order would show."""
    ramp = np.linspace(0, 15, BLOCK_SIZE, dtype=np.float32)
    weight = np.concatenate([ramp - 3, ramp - 7, ramp - 12])[None]
    _, scales, zero_points = quantize(weight, INT4)
    np.testing.assert_allclose(scales, 1, rtol=1e-6)
    assert zero_points is not None and zero_points.shape == (1, 2)
    assert zero_points[0, 0] == 3 + (7 << 4)
    assert zero_points[0, 1] & 0x0F == 12


def onnxruntimes_codes(weight: Array, stored: WeightFormat) -> list[Array | None]:
    """What ONNX Runtime's own quantizer makes of a weight ``[out, in]``."""
    config = DefaultWeightOnlyQuantConfig(
        block_size=stored.block, is_symmetric=stored.symmetric, accuracy_level=4, bits=stored.bits
    )
    codes, scales, points = DefaultWeightOnlyQuantizer(config).qbits_block_quant(
        np.ascontiguousarray(weight.T, np.float32)
    )
    return [codes, scales, None if stored.symmetric else points]


@given(
    stored=st.sampled_from([*FORMATS, WeightFormat(8, 32), WeightFormat(4, 16, symmetric=False)]),
    rows=st.integers(1, 4),
    columns=st.integers(1, 200).map(lambda half: 2 * half),
    scale=st.floats(2**-10, 2**13, width=32),
    seed=st.integers(0, 2**32 - 1),
)
def test_codes_are_those_of_onnxruntimes_quantizer(
    stored: WeightFormat, rows: int, columns: int, scale: float, seed: int
) -> None:
    """Multiples of a quarter lie just between two codes; one row is of one value, one all zeros."""
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((rows, columns)).astype(np.float32) * np.float32(scale)
    weight[0] = np.round(4 * weight[0]) / 4
    weight[1:2], weight[2:3] = scale, 0
    for found, expected in zip(
        quantize(weight, stored), onnxruntimes_codes(weight, stored), strict=True
    ):
        np.testing.assert_equal(found, expected)


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


def dequantized(weight: Array, stored: WeightFormat) -> Array:
    """Blocks of 128 along the input, rounded; the last one may be shorter.

    Symmetric: the extreme value maps to -2^(bits-1). Else the range, extended to zero, maps to all
    codes, after its zero is rounded to one of them.
    """
    rows, columns = weight.shape
    padded = np.pad(weight, ((0, 0), (0, -columns % BLOCK_SIZE)))
    blocks = padded.reshape(rows, -1, BLOCK_SIZE)
    if stored.symmetric:
        index = np.abs(blocks).argmax(-1, keepdims=True)
        scale = np.take_along_axis(blocks, index, -1) / -(2 ** (stored.bits - 1))
        zero = np.float32(2 ** (stored.bits - 1))
    else:
        low = np.minimum(blocks.min(-1, keepdims=True), 0)
        high = np.maximum(blocks.max(-1, keepdims=True), 0)
        scale = (high - low) / (2**stored.bits - 1)
        zero = np.rint(-low / _nonzero(scale))
    codes = np.clip(np.rint(blocks / _nonzero(scale) + zero), 0, 2**stored.bits - 1)
    return np.asarray(((codes - zero) * scale).reshape(rows, -1)[:, :columns])


def _nonzero(scale: Array) -> Array:
    return np.where(scale == 0, np.float32(1), scale)
