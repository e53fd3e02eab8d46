"""Metrics of generated text and their confidence intervals; numpy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export.evaluation.parity import log_softmax

Numbers = Sequence[float] | npt.NDArray[Any]


def distinct_n(tokens: Sequence[Hashable], n: int) -> float:
    """Share of the n-grams that are different ones (Li et al., arXiv 1510.03055).

    A text shorter than n tokens has no n-gram that could repeat: 1.

    >>> distinct_n("a b a b".split(), 2)
    0.6666666666666666
    """
    return distinct_n_of_all([tokens], n)


def distinct_n_of_all(texts: Iterable[Sequence[Hashable]], n: int) -> float:
    """`distinct_n` of the n-grams of several texts together; none goes over from one to the next.

    >>> distinct_n_of_all([(1, 2, 3), (1, 2, 4)], 2)
    0.75
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    grams = [tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0


def repetition(tokens: Sequence[Hashable], n: int) -> float:
    """``rep_n``: the share of n-grams that repeat an earlier one, ``1 - distinct_n``."""
    return 1.0 - distinct_n(tokens, n)


def diversity(tokens: Sequence[Hashable]) -> float:
    """``prod over n = 2..4 of (1 - rep_n)`` (Su et al., arXiv 2202.06417), from 0 to 1.

    >>> diversity("one two three four five".split())
    1.0
    """
    return float(np.prod([distinct_n(tokens, n) for n in (2, 3, 4)]))


def negative_log_likelihoods(
    logits: npt.NDArray[np.floating[Any]], targets: npt.NDArray[np.integer[Any]]
) -> npt.NDArray[np.float64]:
    """Negative log-likelihood in nats of each target.

    Args:
        logits: ``[N, V]``; row i predicts ``targets[i]``, the token after it.
        targets: ``[N]``.

    Returns:
        ``[N]``.
    """
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(f"targets {targets.shape} do not fit logits {logits.shape}")
    if len(targets) and not 0 <= targets.min() <= targets.max() < logits.shape[1]:
        raise ValueError(f"targets must be from 0 to {logits.shape[1] - 1}")
    # Row by row, so that float64 copies of a large vocabulary stay small.
    rows = (-log_softmax(row)[target] for row, target in zip(logits, targets, strict=True))
    return np.fromiter(rows, np.float64, len(targets))


def perplexity(
    logits: npt.NDArray[np.floating[Any]], targets: npt.NDArray[np.integer[Any]]
) -> float:
    """``exp`` of the mean negative log-likelihood; arguments as `negative_log_likelihoods`."""
    if not len(targets):
        raise ValueError("perplexity needs at least one token")
    return float(np.exp(negative_log_likelihoods(logits, targets).mean()))


@dataclasses.dataclass(frozen=True)
class Interval:
    """A mean and its confidence interval."""

    mean: float
    low: float
    high: float

    def excludes(self, value: float) -> bool:
        """Whether ``value`` lies outside."""
        return not self.low <= value <= self.high


def bootstrap_mean(
    values: Numbers, *, confidence: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap of a mean (Efron 1979); the same seed gives the same interval.

    Args:
        values: ``[N]``, independent, at least one.
        confidence: Between 0 and 1.
        resamples: Number of resampled means.
        seed: Of the resampling.
    """
    sample = np.asarray(values, np.float64)
    if sample.ndim != 1 or not sample.size or not np.isfinite(sample).all():
        raise ValueError("a bootstrap needs at least one finite value, in one dimension")
    return _percentiles(
        lambda drawn: sample[drawn].mean(axis=-1), sample.size, confidence, resamples, seed
    )


def bootstrap_perplexity(
    losses: Sequence[Numbers],
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Perplexity over all tokens of some texts, texts resampled whole; ``mean`` is the perplexity.

    Args:
        losses: ``[tokens]`` for each text: their negative log-likelihoods in nats.
        confidence: As `bootstrap_mean`, like the following.
        resamples: Number of resampled sets of texts.
        seed: Of the resampling.
    """
    counts = np.array([len(of_text) for of_text in losses])
    sums = np.array([np.sum(of_text, dtype=np.float64) for of_text in losses])
    if not sums.size or not counts.all() or not np.isfinite(sums).all():
        raise ValueError("a perplexity needs texts of at least one token, of finite losses")
    return _percentiles(
        lambda drawn: np.exp(sums[drawn].sum(-1) / counts[drawn].sum(-1)),
        sums.size,
        confidence,
        resamples,
        seed,
    )


def _percentiles(
    statistic: Callable[[npt.NDArray[np.int64]], Any],
    size: int,
    confidence: float,
    resamples: int,
    seed: int,
) -> Interval:
    """A statistic of a sample with its percentile interval.

    Args:
        statistic: ``[..., size]`` indices into the sample to ``[...]``.
        size: Of the sample.
        confidence: As `bootstrap_mean`, like the following.
        resamples: How often it is drawn anew.
        seed: Of that.
    """
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError("confidence must lie between 0 and 1, resamples be at least 1")
    generator = np.random.default_rng(seed)
    # In slices of about a million indices, whatever the size is.
    found = np.empty(resamples)
    step = max(1, (1 << 20) // size)
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        found[start : start + count] = statistic(generator.integers(0, size, (count, size)))
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(statistic(np.arange(size))), float(low), float(high))


def bootstrap_paired_difference(
    treated: Numbers,
    control: Numbers,
    *,
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Interval:
    """Bootstrap of the mean of ``treated[i] - control[i]``, pairs resampled together.

    Args:
        treated: ``[N]``.
        control: ``[N]``, of the same prompts in the same order.
        confidence: As `bootstrap_mean`, like the following.
        resamples: Number of resampled means.
        seed: Of the resampling.
    """
    a, b = np.asarray(treated, np.float64), np.asarray(control, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"pairs are needed, got {a.shape} and {b.shape}")
    return bootstrap_mean(a - b, confidence=confidence, resamples=resamples, seed=seed)
