"""A probe from data: R and heads in closed form, from moments of the base's final state.

One pass over the texts collects covariances, so memory does not grow with the data: ``d x d`` of
the states, and ``d x n d`` for a signal of n drafts. A ``value`` is fitted by ridge regression of
the score on the state at every token. A ``medusa`` head is fitted to the *state* from which the
base will choose, i places later, through the base's own language model head; R is then the
reduced-rank regression (Izenman, 1975), measured in the base's logits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from otter_export.base_model import BaseModel
from otter_export.boundary import errors_as
from otter_export.config import OtterConfig
from otter_export.errors import CheckpointError, ConfigError, UnsupportedError
from otter_export.modeling.data import Batch, Item, batches, split
from otter_export.modeling.otter_model import load_base
from otter_export.probe import Probe, orthonormal
from otter_export.signals import Signal

FloatMatrix = npt.NDArray[np.float64]
#: Penalties that are tried on held-out texts, in units of the states' mean variance.
_PENALTIES = tuple(10.0**power for power in range(-6, 2))
_HELD_OUT = 0.1
_BATCH_TOKENS = 2048
#: Slope and centre of an activation, by which a score becomes the head's output before it.
_LINEAR = {"identity": (1.0, 0.0), "tanh": (1.0, 0.0), "sigmoid": (4.0, 0.5)}


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


def fittable(signals: Sequence[Signal]) -> list[Signal]:
    """The signals whose heads data can give.

    Raises:
        UnsupportedError: There are none.
    """
    found = [s for s in signals if s.kind in ("value", "medusa")]
    if not found:
        kinds = ", ".join(dict.fromkeys(s.kind for s in signals))
        raise UnsupportedError(
            f"--data fits a probe of a value or a medusa signal, and there is only {kinds}; leave "
            "it out for a random probe"
        )
    return found


@torch.no_grad()
def fit_probe(
    base: BaseModel,
    config: OtterConfig,
    items: Sequence[Item],
    seed: int,
    progress: Callable[[int], object] = lambda items: None,
) -> Probe:
    """Fit R and the heads of all ``value`` and ``medusa`` signals.

    Args:
        base: Whose states.
        config: Of the channel.
        items: Texts; with scores, if there is a ``value`` signal.
        seed: Of which texts choose the penalty, and of the rows of R that no signal needs.
        progress: Called with the number of texts just read.

    Raises:
        ConfigError: The texts are too few or too short.
        UnsupportedError: No signal can be fitted.
    """
    signals = fittable(config.signals)
    model = load_base(base)
    parts = [
        _moments(base, model, signals, part, progress) for part in split(items, _HELD_OUT, seed)
    ]
    rules: dict[str, tuple[Moments, float]] = {}
    for signal in signals:
        fit, held_out = (part[signal.name] for part in parts)
        if not fit.count or not held_out.count:
            raise ConfigError(
                f"the texts are too few or too short to fit the signal {signal.name!r}; it needs "
                f"more than {signal.heads} tokens a text"
            )
        rules[signal.name] = fit + held_out, _penalty(fit, held_out)
    head = model.get_output_embeddings()
    size = config.hidden_size
    rows = orthonormal(_directions(signals, rules, head, size), size, seed)
    heads: dict[str, Any] = {}
    for signal in signals:
        weight, bias = _head(signal, *rules[signal.name], rows, model)
        heads[f"signals.{signal.name}.weight"] = weight
        heads[f"signals.{signal.name}.bias"] = bias
    return Probe(rows, heads)


def _moments(
    base: BaseModel,
    model: Any,
    signals: Sequence[Signal],
    items: Sequence[Item],
    progress: Callable[[int], object],
) -> dict[str, Moments]:
    """Of each signal's rows and targets."""
    d = base.dimensions.hidden_size
    sums = {s.name: Moments.none(d, 1 if s.kind == "value" else s.heads * d) for s in signals}
    for batch in batches(items, _BATCH_TOKENS):
        with errors_as(CheckpointError, f"{base.directory}: the model failed in torch"):
            state = model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
        for signal in signals:
            sums[signal.name].add(*_targets(signal, state.float(), batch))
        progress(len(batch.ids))
    return sums


def _targets(signal: Signal, state: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Rows ``[N, d]`` of states ``[R, S, d]``, and what each is to predict, ``[N, k]``."""
    if signal.kind == "value":
        slope, centre = _LINEAR[signal.activation]
        scores = (batch.scores[:, None] - centre) * slope
        return state[batch.supervised], scores.expand_as(batch.supervised)[batch.supervised][
            :, None
        ]
    n, size = signal.heads, state.shape[1]
    if size <= n:
        return state[0, :0], state.new_zeros(0, n * state.shape[2])
    at = batch.supervised[:, : size - n] & batch.supervised[:, n:]
    later = [state[:, i : size - n + i][at] for i in range(1, n + 1)]
    return state[:, : size - n][at], torch.cat(later, dim=1)


def _penalty(fit: Moments, held_out: Moments) -> float:
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


def _directions(
    signals: Sequence[Signal],
    rules: dict[str, tuple[Moments, float]],
    head: Any,
    size: int,
) -> npt.NDArray[np.float32]:
    """What R has to span, at most ``size`` rows: one a value, the rest shared by the drafts."""
    values = [s for s in signals if s.kind == "value"][:size]
    found = [_solve(*rules[s.name]).T for s in values]
    drafts = [s for s in signals if s.kind == "medusa"]
    for i, signal in enumerate(drafts):
        share = (size - len(values)) * (i + 1) // len(drafts) - (size - len(values)) * i // len(
            drafts
        )
        found.append(_reduced_rank(*rules[signal.name], head.weight, share))
    return np.concatenate(found).astype(np.float32)


def _solve(moments: Moments, penalty: float) -> FloatMatrix:
    """Ridge regression, ``[d, k]``."""
    xx, xy = moments.centred(moments)
    return np.asarray(np.linalg.solve(xx + penalty * np.eye(len(xx)), xy), np.float64)


def _reduced_rank(moments: Moments, penalty: float, weight: Tensor, rank: int) -> FloatMatrix:
    """The ``rank`` directions from which later logits are predicted best, ``[rank, d]``.

    ``|W e|^2 = e^T (W^T W) e`` measures an error e of a predicted state in the base's logits.
    """
    xx, xy = moments.centred(moments)
    values, vectors = np.linalg.eigh(xx + penalty * np.eye(len(xx)))
    whiten = vectors / np.sqrt(values)  # [d, d]; the whitened state is x @ whiten
    cross = (whiten.T @ xy).reshape(len(xx), -1, len(xx))
    wide = weight.float()
    metric = (wide.T @ wide).double().numpy()
    explained = np.einsum("ani,ij,bnj->ab", cross, metric, cross, optimize=True)
    _, best = np.linalg.eigh(explained)
    return np.ascontiguousarray((whiten @ best[:, ::-1][:, :rank]).T)


def _head(
    signal: Signal, moments: Moments, penalty: float, rows: npt.NDArray[np.float32], model: Any
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Weight ``[*head_dims, d']`` and bias of a signal on ``R n``, by ridge regression."""
    wide = rows.astype(np.float64)
    seen = dataclasses.replace(
        moments, x=wide @ moments.x, xx=wide @ moments.xx @ wide.T, xy=wide @ moments.xy
    )
    solution = _solve(seen, penalty)  # [d', k]
    constant = seen.y / seen.count - solution.T @ (seen.x / seen.count)  # [k]
    if signal.kind == "value":
        return solution.T.astype(np.float32), constant.astype(np.float32)
    d = rows.shape[1]
    embeddings = model.get_output_embeddings()
    scale = getattr(model.config, "logit_scale", 1.0) / getattr(model.config, "logits_scaling", 1.0)
    drafted = slice(signal.draft_vocab)  # a fresh checkpoint drafts the first tokens
    output = embeddings.weight[drafted].float().numpy() * np.float32(scale)
    bias = 0.0 if embeddings.bias is None else embeddings.bias[drafted].float().numpy() * scale
    parts = solution.reshape(len(rows), -1, d).astype(np.float32)
    weight = np.stack([output @ parts[:, i].T for i in range(signal.heads)])
    means = constant.reshape(-1, d).astype(np.float32)
    return weight, np.stack([output @ mean + bias for mean in means])
