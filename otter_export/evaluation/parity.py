"""Numbers that compare an engine's outputs with a reference; pure functions on arrays."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export.runtime.sampler import top_candidates

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]

#: A spread below this share of the size is taken for none: such values are all but constant, and
#: what is left of them is rounding.
_LEAST_SPREAD = 0.1


@dataclasses.dataclass(frozen=True)
class Difference:
    """How far values are from their reference.

    Args:
        maximum: Largest absolute difference; infinite if a value is NaN or an infinity is wrong.
        mean: Mean absolute difference.
        spread: Standard deviation of the reference (of a nearly constant one, a tenth of its size).
    """

    maximum: float
    mean: float
    spread: float

    @property
    def relative(self) -> float:
        """Largest difference in units of the spread."""
        return _ratio(self.maximum, self.spread)

    @property
    def relative_mean(self) -> float:
        """Mean difference in units of the spread."""
        return _ratio(self.mean, self.spread)


def _ratio(value: float, unit: float) -> float:
    if value == 0:
        return 0.0
    return value / unit if unit > 0 else np.inf


def difference(values: Floats, reference: Floats, scale: float | None = None) -> Difference:
    """Compare arrays of one shape.

    Args:
        values: What is judged.
        reference: What it should be; at least one number.
        scale: The spread to use; None takes the reference's own. A few rows of a signal may lie
            closer together than its values do in general.
    """
    if values.shape != reference.shape or reference.size == 0:
        raise ValueError(f"cannot compare {values.shape} with {reference.shape}")
    with np.errstate(invalid="ignore", over="ignore"):
        distance = np.abs(values - reference)
    # Equal infinities are no difference; NaN never is equal.
    distance[values == reference] = 0.0
    distance[np.isnan(distance)] = np.inf
    return Difference(
        maximum=float(distance.max()),
        mean=float(distance.mean(dtype=np.float64)),
        spread=spread(reference) if scale is None else scale,
    )


def spread(reference: Floats) -> float:
    """Standard deviation of the finite values, at least a tenth of their root mean square."""
    finite = reference[np.isfinite(reference)]
    if finite.size == 0:
        return 0.0
    deviation = float(finite.std(dtype=np.float64))
    size = float(np.sqrt(np.square(finite, dtype=np.float64).mean()))
    return max(deviation, _LEAST_SPREAD * size)


def top(logits: Floats, count: int) -> Ints:
    """``[N, V]`` to the ``count`` best tokens of each row ``[N, count]``, best first."""
    return np.stack(
        [top_candidates(row, min(count, len(row))) for row in logits.astype(np.float32)]
    )


def top_agreement(values: Floats, reference: Floats, count: int) -> float:
    """Mean share of the reference's ``count`` best tokens that are among the values' best.

    Args:
        values: ``[N, V]``.
        reference: ``[N, V]``.
        count: 1 gives the top-1 agreement.
    """
    found, wanted = top(values, count), top(reference, count)
    shares = [np.isin(w, f).mean() for f, w in zip(found, wanted, strict=True)]
    return float(np.mean(shares))


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """A row whose best token is not the reference's.

    Args:
        row: Which.
        expected: The reference's best token.
        found: The values' best token.
        margin: How far the reference holds ``expected`` above ``found``, at least 0.
    """

    row: int
    expected: int
    found: int
    margin: float


def disagreements(values: Floats, reference: Floats) -> list[Disagreement]:
    """Rows of ``[N, V]`` whose best tokens differ."""
    found, expected = top(values, 1)[:, 0], top(reference, 1)[:, 0]
    return [
        Disagreement(
            row=int(row),
            expected=int(expected[row]),
            found=int(found[row]),
            margin=float(reference[row, expected[row]] - reference[row, found[row]]),
        )
        for row in np.flatnonzero(found != expected)
    ]


def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Log-probabilities ``[..., V]`` of logits ``[..., V]``."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def kl_divergence(reference: Floats, values: Floats) -> npt.NDArray[np.float64]:
    """``KL(reference || values)`` in nats of every row of logits: ``[N, V]`` twice to ``[N]``."""
    rows = [_kl(log_softmax(r), log_softmax(v)) for r, v in zip(reference, values, strict=True)]
    return np.array(rows, np.float64)


def kl_from_uniform(reference: Floats) -> npt.NDArray[np.float64]:
    """``KL(reference || uniform)`` in nats of every row of logits: ``[N, V]`` to ``[N]``."""
    zeros = np.zeros(reference.shape[1])
    return np.array([_kl(log_softmax(r), log_softmax(zeros)) for r in reference], np.float64)


def _kl(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    possible = p > -np.inf
    # Rounding may leave a divergence of 0 a little below it.
    return max(0.0, float((np.exp(p[possible]) * (p[possible] - q[possible])).sum()))
