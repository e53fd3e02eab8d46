"""L0: metrics of text, against numbers worked out by hand, and their intervals."""

from __future__ import annotations

import itertools
import math

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from otter_export.evaluation import text_metrics as metrics

tokens = st.lists(st.integers(0, 5), max_size=30)


def test_repetition_of_a_loop() -> None:
    loop = ["a", "b", "a", "b", "a", "b"]
    assert metrics.distinct_n(loop, 1) == pytest.approx(2 / 6)
    assert metrics.distinct_n(loop, 2) == pytest.approx(2 / 5)
    assert metrics.repetition(loop, 2) == pytest.approx(3 / 5)
    assert metrics.diversity(loop) == pytest.approx(2 / 5 * 2 / 4 * 2 / 3)


@hypothesis.given(tokens)
def test_diversity_is_one_exactly_without_repeated_pairs(words: list[int]) -> None:
    pairs = list(itertools.pairwise(words))
    assert 0 < metrics.diversity(words) <= 1
    assert (metrics.diversity(words) == 1) == (len(set(pairs)) == len(pairs))


@hypothesis.given(tokens, st.integers(1, 4))
def test_distinct_and_repetition_add_up(words: list[int], n: int) -> None:
    assert metrics.distinct_n(words, n) + metrics.repetition(words, n) == pytest.approx(1)


def test_pairs_of_several_texts_are_counted_together() -> None:
    # Six pairs, of which (1, 2) comes twice and (2, 1) goes over from one text to the next.
    texts = [[1, 2, 3, 4], [5], [1, 2], [1, 3, 1]]
    assert metrics.distinct_n_of_all(texts, 2) == pytest.approx(5 / 6)
    assert metrics.distinct_n_of_all([], 2) == 1


def test_short_texts_do_not_repeat() -> None:
    assert metrics.distinct_n([], 2) == 1
    assert metrics.diversity(["one"]) == 1
    with pytest.raises(ValueError, match="at least 1"):
        metrics.distinct_n(["one"], 0)


def test_perplexity_of_a_uniform_model_is_its_vocabulary() -> None:
    assert metrics.perplexity(np.zeros((4, 50), np.float32), np.arange(4)) == pytest.approx(50)


def test_perplexity_of_known_probabilities() -> None:
    logits = np.log(np.array([[0.5, 0.5], [0.125, 0.875]])) + 11
    found = metrics.negative_log_likelihoods(logits, np.array([0, 0]))
    np.testing.assert_allclose(found, [math.log(2), math.log(8)])
    assert metrics.perplexity(logits, np.array([0, 0])) == pytest.approx(4)


@pytest.mark.parametrize("targets", [[0], [0, 2], [0, -1]])
def test_targets_must_fit(targets: list[int]) -> None:
    with pytest.raises(ValueError, match="targets"):
        metrics.perplexity(np.zeros((2, 2), np.float32), np.array(targets))


def test_perplexity_of_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        metrics.perplexity(np.zeros((0, 2), np.float32), np.zeros(0, np.int64))


def test_intervals_cover_the_true_mean_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    samples = generator.normal(3.0, 2.0, (300, 40))
    found = [metrics.bootstrap_mean(s, confidence=0.9, resamples=400) for s in samples]
    covered = np.mean([not interval.excludes(3.0) for interval in found])
    # Percentile intervals of 40 values cover a little less than they say; two sigma is 0.035.
    assert 0.83 < covered < 0.95


def test_the_interval_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(1).normal(0, 1, 400)
    found = metrics.bootstrap_mean(values)
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.012)
    assert found.high == pytest.approx(values.mean() + half, abs=0.012)


def test_a_perplexity_is_over_tokens_and_its_interval_over_texts() -> None:
    losses = [[1.0, 2.0, 3.0], [4.0]]
    found = metrics.bootstrap_perplexity(losses)
    assert found.mean == pytest.approx(math.exp(2.5))
    # Of two texts, what is drawn is the one twice, the other twice, or both.
    assert found.low == pytest.approx(math.exp(2)) and found.high == pytest.approx(math.exp(4))
    for wrong in ([], [[]], [[1.0], []], [[math.inf]]):
        with pytest.raises(ValueError, match="at least one token, of finite losses"):
            metrics.bootstrap_perplexity(wrong)


@hypothesis.given(st.lists(st.floats(-5, 5), min_size=1, max_size=20), st.integers(1, 4))
def test_the_interval_of_texts_that_are_as_long_is_that_of_their_means(
    means: list[float], length: int
) -> None:
    # Of 201 resamples the bounds are the sixth and the last but five, whose order exp keeps.
    found = metrics.bootstrap_perplexity([[m] * length for m in means], resamples=201)
    plain = metrics.bootstrap_mean(means, resamples=201)
    for name in ("mean", "low", "high"):
        assert math.log(getattr(found, name)) == pytest.approx(getattr(plain, name), abs=1e-9)


def test_the_seed_decides() -> None:
    values = np.random.default_rng(0).normal(size=30)
    assert metrics.bootstrap_mean(values, seed=3) == metrics.bootstrap_mean(values, seed=3)
    assert metrics.bootstrap_mean(values, seed=3) != metrics.bootstrap_mean(values, seed=4)


def test_pairs_are_resampled_together() -> None:
    control = np.random.default_rng(2).normal(0, 100, 50)
    found = metrics.bootstrap_paired_difference(control + 1.0, control)
    assert (found.mean, found.low, found.high) == pytest.approx((1.0, 1.0, 1.0))
    assert found.excludes(0.0)
    with pytest.raises(ValueError, match="pairs"):
        metrics.bootstrap_paired_difference([1.0, 2.0], [1.0])


@pytest.mark.parametrize("values", [[], [math.nan], [[1.0]]])
def test_a_bootstrap_needs_numbers(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite"):
        metrics.bootstrap_mean(values)


def test_a_bootstrap_checks_its_options() -> None:
    with pytest.raises(ValueError, match="confidence"):
        metrics.bootstrap_mean([1.0], confidence=1.0)
    with pytest.raises(ValueError, match="resamples"):
        metrics.bootstrap_mean([1.0], resamples=0)
