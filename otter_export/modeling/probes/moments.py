"""Sums over rows, from which regressions follow, so that memory does not grow with the data."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from torch import Tensor

FloatMatrix = npt.NDArray[np.float64]
#: Penalties that are tried on held-out texts, in units of the states' mean variance.
_PENALTIES = tuple(10.0**power for power in range(-6, 2))


@dataclasses.dataclass
class Moments:
    """Sums over rows of states x ``[d]`` and targets y ``[k]``."""

    count: float
    x: FloatMatrix
    y: FloatMatrix
    xx: FloatMatrix
    xy: FloatMatrix

    @classmethod
    def none(cls, d: int, k: int) -> Moments:
        """Of no rows."""
        return cls(0.0, np.zeros(d), np.zeros(k), np.zeros((d, d)), np.zeros((d, k)))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows, float32 ``[N, d]`` and ``[N, k]``."""
        x, y = x.double(), y.double()
        self.count += len(x)
        self.x += x.sum(0).numpy()
        self.y += y.sum(0).numpy()
        self.xx += (x.T @ x).numpy()
        self.xy += (x.T @ y).numpy()

    def __add__(self, other: Moments) -> Moments:
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))
        return Moments(*(one + two for one, two in pairs))

    def centred(self, about: Moments) -> tuple[FloatMatrix, FloatMatrix]:
        """Second moments ``[d, d]`` and ``[d, k]`` about the means of others."""
        x, y, mean_x, mean_y = (
            *(about.x / about.count, about.y / about.count),
            *(self.x / self.count, self.y / self.count),
        )
        xx = self.xx / self.count - np.outer(x, mean_x) - np.outer(mean_x, x) + np.outer(x, x)
        xy = self.xy / self.count - np.outer(x, mean_y) - np.outer(mean_x, y) + np.outer(x, y)
        return xx, xy

    def seen_by(self, rows: FloatMatrix) -> Moments:
        """The moments of ``rows @ x``."""
        xx, xy = rows @ self.xx @ rows.T, rows @ self.xy
        return dataclasses.replace(self, x=rows @ self.x, xx=xx, xy=xy)


def best_penalty(fit: Moments, held_out: Moments) -> float:
    """The penalty of ridge regression with the least error on the held-out rows."""
    xx, xy = fit.centred(fit)
    values, vectors = np.linalg.eigh(xx)
    held_xx, held_xy = held_out.centred(fit)
    rotated, cross = vectors.T @ xy, vectors.T @ held_xy
    turned = vectors.T @ held_xx @ vectors
    unit = float(np.trace(xx)) / len(xx)

    def error(penalty: float) -> float:
        solution = rotated / (values.clip(0) + penalty * unit)[:, None]
        return float(np.sum(solution * (turned @ solution - 2 * cross)))

    return unit * min(_PENALTIES, key=error)


def ridge(moments: Moments, penalty: float) -> FloatMatrix:
    """Ridge regression of y on x, about their means: ``[d, k]``."""
    xx, xy = moments.centred(moments)
    return np.asarray(np.linalg.solve(xx + penalty * np.eye(len(xx)), xy), np.float64)
