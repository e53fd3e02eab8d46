"""L0: the numbers of a comparison, against plain formulas and by their properties."""

from __future__ import annotations

import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from otter_export.evaluation import parity

finite = st.floats(-100, 100, width=32)
logits = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=2, max_dims=2, min_side=2), elements=finite
)


@hypothesis.given(logits)
def test_nothing_differs_from_itself(values: np.ndarray) -> None:
    found = parity.difference(values, values.copy())
    assert (found.maximum, found.mean, found.relative, found.relative_mean) == (0, 0, 0, 0)
    assert parity.disagreements(values, values) == []
    assert parity.top_agreement(values, values, 1) == 1
    assert parity.kl_divergence(values, values) == pytest.approx(0, abs=1e-12)


@hypothesis.given(logits, st.integers(0, 10**6), st.floats(0.5, 64, width=32))
def test_one_changed_number_is_the_maximum(values: np.ndarray, at: int, by: float) -> None:
    changed = values.copy()
    changed.flat[at % values.size] += np.float32(by)
    step = abs(float(changed.flat[at % values.size]) - float(values.flat[at % values.size]))
    found = parity.difference(changed, values)
    assert found.maximum == pytest.approx(step)
    assert found.mean == pytest.approx(step / values.size)


@hypothesis.given(logits, logits, st.floats(0.25, 64, width=32))
def test_relative_differences_have_no_unit(a: np.ndarray, b: np.ndarray, unit: float) -> None:
    rows, columns = (min(x, y) for x, y in zip(a.shape, b.shape, strict=True))
    a, b = a[:rows, :columns], b[:rows, :columns]
    hypothesis.assume(parity.spread(b) > 1e-3)
    plain = parity.difference(a, b)
    scaled = parity.difference(a * np.float32(unit), b * np.float32(unit))
    assert scaled.relative == pytest.approx(plain.relative, rel=1e-4)


def test_spread_is_the_standard_deviation() -> None:
    assert parity.spread(np.array([1.0, 3.0], np.float32)) == 1.0


def test_a_nearly_constant_reference_is_judged_by_its_size() -> None:
    values = np.array([0.5, 0.5, 0.5 + 1e-7], np.float32)
    assert parity.spread(values) == pytest.approx(0.05)
    assert parity.difference(values, values, scale=2.0).spread == 2.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_is_infinitely_wrong(bad: float) -> None:
    reference = np.array([1.0, 2.0, 3.0], np.float32)
    values = np.array([1.0, bad, 3.0], np.float32)
    assert parity.difference(values, reference).maximum == math.inf
    assert parity.difference(values, reference).relative == math.inf


def test_a_wrong_zero_reference_is_infinitely_wrong_relative() -> None:
    zeros = np.zeros(3, np.float32)
    assert parity.difference(zeros, zeros).relative == 0
    assert parity.difference(zeros + np.float32(1e-9), zeros).relative == math.inf


def test_equal_infinities_are_no_difference() -> None:
    masked = np.array([1.0, -np.inf, 3.0], np.float32)
    found = parity.difference(masked, masked)
    assert found.maximum == 0
    assert found.spread == 1.0


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="cannot compare"):
        parity.difference(np.zeros((2, 1), np.float32), np.zeros(2, np.float32))
    with pytest.raises(ValueError, match="cannot compare"):
        parity.difference(np.zeros(0, np.float32), np.zeros(0, np.float32))


@hypothesis.given(logits, st.integers(1, 12))
def test_top_is_a_stable_sort(values: np.ndarray, count: int) -> None:
    expected = np.argsort(-values, axis=1, kind="stable")[:, :count]
    np.testing.assert_array_equal(parity.top(values, count), expected)


def test_top_agreement_counts_shared_tokens() -> None:
    reference = np.array([[4, 3, 2, 1], [4, 3, 2, 1]], np.float32)
    values = np.array([[4, 3, 2, 1], [1, 4, 2, 3]], np.float32)
    assert parity.top_agreement(values, reference, 1) == 0.5
    assert parity.top_agreement(values, reference, 2) == 0.75


def test_a_disagreement_has_the_references_margin() -> None:
    reference = np.array([[1, 2, 3], [5, 4, 4.5]], np.float32)
    values = np.array([[1, 2, 3], [4, 5, 4.5]], np.float32)
    assert parity.disagreements(values, reference) == [parity.Disagreement(1, 0, 1, 1.0)]


@hypothesis.given(logits, logits)
def test_margins_are_what_both_errors_can_explain(a: np.ndarray, b: np.ndarray) -> None:
    rows, columns = (min(x, y) for x, y in zip(a.shape, b.shape, strict=True))
    a, b = a[:rows, :columns], b[:rows, :columns]
    largest = parity.difference(a, b).maximum
    for row in parity.disagreements(a, b):
        assert 0 <= row.margin <= 2 * largest + 1e-4


def test_kl_divergence_is_the_formula() -> None:
    p, q = np.array([[0.5, 0.25, 0.25]]), np.array([[0.25, 0.25, 0.5]])
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    assert parity.kl_divergence(np.log(p) + 7, np.log(q) - 3)[0] == pytest.approx(expected)


@hypothesis.given(logits)
def test_kl_from_uniform_is_the_lost_entropy(values: np.ndarray) -> None:
    p = np.exp(parity.log_softmax(values))
    entropy = -(p * np.log(np.maximum(p, 1e-300))).sum(1)
    expected = math.log(values.shape[1]) - entropy
    np.testing.assert_allclose(parity.kl_from_uniform(values), expected, atol=1e-9)


def test_impossible_tokens_cost_nothing() -> None:
    reference = np.array([[0.0, -np.inf]], np.float32)
    assert parity.kl_divergence(reference, np.zeros((1, 2), np.float32))[0] == pytest.approx(
        math.log(2)
    )
