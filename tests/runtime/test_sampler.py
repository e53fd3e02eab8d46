"""L4: the k best logits, exact pruning, and sampling."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export import ArgsGreedy
from otter_export.errors import EngineError
from otter_export.runtime.sampler import nucleus, possible_winners, sample, top_candidates

#: Few distinct values, so that ties are common; some are minus infinity.
TIED = st.lists(st.sampled_from([-np.inf, -1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=40)
FLOATS = st.floats(-50, 50, width=32)


@given(TIED, st.integers(1, 50))
def test_top_candidates_are_the_best_logits_in_order(values: list[float], count: int) -> None:
    logits = np.array([*values, 1.0], np.float32)
    finite = [i for i in range(len(logits)) if logits[i] > -np.inf]
    expected = sorted(finite, key=lambda i: (-logits[i], i))[:count]
    found = top_candidates(logits, count)
    assert found.dtype == np.int64
    assert found.tolist() == expected


@given(st.integers(0, 2**32), st.sampled_from([255, 256, 1000, 5000]), st.integers(1, 300))
def test_top_candidates_of_a_large_vocabulary(seed: int, size: int, count: int) -> None:
    # Rounded, so that there are ties.
    logits = np.random.default_rng(seed).standard_normal(size).round(2).astype(np.float32)
    expected = np.argsort(-logits, kind="stable")[:count]
    assert top_candidates(logits, count).tolist() == expected.tolist()


@given(TIED)
def test_all_candidates_are_the_possible_tokens_by_id(values: list[float]) -> None:
    logits = np.array([*values, 1.0], np.float32)
    found = top_candidates(logits, None).tolist()
    assert found == [i for i in range(len(logits)) if logits[i] > -np.inf]


@given(st.lists(st.sampled_from([0.0, 1.0]), min_size=3, max_size=30))
def test_fewer_candidates_are_the_beginning_of_more(values: list[float]) -> None:
    logits = np.array(values, np.float32)
    most = top_candidates(logits, len(values)).tolist()
    for count in range(1, len(values)):
        assert top_candidates(logits, count).tolist() == most[:count]


@pytest.mark.parametrize("bad", [[np.nan, 1.0], [np.inf, 1.0], [-np.inf, -np.inf]])
def test_logits_without_a_best_are_an_error(bad: list[float]) -> None:
    with pytest.raises(EngineError, match="otter-export verify"):
        top_candidates(np.array(bad, np.float32), 2)


@given(
    st.lists(st.tuples(FLOATS, st.floats(0, 1)), min_size=1, max_size=10),
    st.floats(-8, 8),
    st.sampled_from([(-1.0, 1.0), (0.0, 1.0), (-0.25, 0.5)]),
)
def test_a_pruned_candidate_never_wins(
    drawn: list[tuple[float, float]], weight: float, bounds: tuple[float, float]
) -> None:
    low, high = bounds
    ordered = sorted(drawn, key=lambda pair: -pair[0])
    logits = np.array([pair[0] for pair in ordered], np.float32)
    rewards = np.array([low + pair[1] * (high - low) for pair in ordered]).clip(low, high)
    method = ArgsGreedy(weight=weight)
    keep = possible_winners(method.combine, logits, bounds)
    generator = np.random.default_rng(0)
    best = method.choose(method.combine(logits, rewards), generator)
    assert keep[best]
    left = np.flatnonzero(keep)
    assert left[method.choose(method.combine(logits[keep], rewards[keep]), generator)] == best


@pytest.mark.parametrize("weight", [1.0, -1.0])
def test_pruning_cuts_at_weight_times_range(weight: float) -> None:
    logits = np.array([5.0, 3.0, 2.9999, 1.0], np.float32)
    keep = possible_winners(ArgsGreedy(weight=weight).combine, logits, (-1.0, 1.0))
    assert keep.tolist() == [True, True, False, False]


def test_weight_zero_leaves_only_the_best() -> None:
    logits = np.array([5.0, 4.0], np.float32)
    method = ArgsGreedy(weight=0, prune=False)
    assert possible_winners(method.combine, logits, (-1.0, 1.0)).tolist() == [True, False]


def _frequencies(scores: list[float], temperature: float) -> np.ndarray:
    generator = np.random.default_rng(7)
    draws = [sample(np.array(scores), temperature, generator) for _ in range(8000)]
    return np.bincount(draws, minlength=len(scores)) / len(draws)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampling_follows_the_softmax(temperature: float) -> None:
    scores = [0.0, 2.0, 1.0]
    expected = np.exp(np.array(scores) / temperature)
    expected /= expected.sum()
    # 8000 draws: the standard deviation of a frequency is at most 0.0056; four of them.
    assert np.abs(_frequencies(scores, temperature) - expected).max() < 0.0225


def test_top_p_keeps_the_smallest_sufficient_set() -> None:
    logits = np.log(np.array([0.5, 0.1, 0.3, 0.1, 0.9], np.float32))
    assert nucleus(logits, np.array([0, 1, 2, 3]), 1.0, 0.7).tolist() == [0, 2]
    # A temperature flattens what it is taken from: 0.42, 0.19, 0.33 and 0.19 of their square roots.
    assert nucleus(logits, np.array([0, 1, 2, 3]), 2.0, 0.7).tolist() == [0, 2, 1]


@given(
    st.lists(st.sampled_from([-9.0, -1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=300),
    st.floats(0.001, 0.999),
)
def test_the_nucleus_is_that_of_all_scores_sorted(scores: list[float], top_p: float) -> None:
    logits = np.array(scores, np.float32)
    order = np.argsort(-logits, kind="stable")
    weights = np.exp(logits.astype(np.float64))
    shares = np.cumsum(weights[order]) / weights.sum()
    found = nucleus(logits, np.arange(len(logits)), 1.0, top_p)
    assert found.tolist() == order[: len(found)].tolist()
    # Up to the rounding of sums in different orders.
    assert shares[len(found) - 1] > top_p - 1e-12
    assert len(found) == 1 or shares[len(found) - 2] < top_p + 1e-12


def test_the_nucleus_is_never_empty() -> None:
    logits = np.array([0.0, 1.0], np.float32)
    assert nucleus(logits, np.array([0, 1]), 1.0, 1e-12).tolist() == [1]


@given(st.lists(FLOATS, min_size=1, max_size=8), st.integers(0, 100))
def test_a_tiny_temperature_is_greedy(scores: list[float], seed: int) -> None:
    array = np.array(scores, np.float64)
    chosen = sample(array, 1e-30, np.random.default_rng(seed))
    assert array[chosen] == array.max()


@given(st.lists(FLOATS, min_size=1, max_size=8), st.floats(0.01, 9))
def test_one_number_is_drawn_whatever_the_scores(scores: list[float], heat: float) -> None:
    used, expected = np.random.default_rng(5), np.random.default_rng(5)
    sample(np.array(scores, np.float64), heat, used)
    expected.random()
    assert used.random() == expected.random()
