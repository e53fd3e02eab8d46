"""Initialisation ``probe``: a channel that is a linear map of the base's final state, ``n' = R n``.

For any R (``[d', d]``), from any first layer on: ``P = R diag(gamma)`` with the gain of the base's
final norm; ``A = P W``, ``B = 0`` and ``b' = P b`` for every projection that writes the hidden
state; gains of one. Then ``x' = P x`` at every layer, and the final norm, which divides both
streams by the same statistics, leaves ``R n``. A LayerNorm subtracts the mean of x from x' too, so
P is there ``R diag(gamma) + (1 - R gamma) 1^T / d``, and ``beta' = R beta``.

What else a channel has (queries, keys, values, neurons) is copied from the base, as ``copy`` does:
nothing reads it before training, and its gradients are not zero.
numpy only; `otter_export.modeling.probe_fit` finds R from data.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping

import numpy as np

from otter_export.base_model import BaseModel
from otter_export.channel import channel_sites
from otter_export.config import OtterConfig
from otter_export.errors import ConfigError
from otter_export.family import ProjectionSite, Space, channel_width
from otter_export.safetensors_io import FloatArray

Maker = Callable[[], FloatArray]


@dataclasses.dataclass(frozen=True)
class Probe:
    """A linear map of the base's final state, and heads on it.

    Args:
        rows: R, float ``[d', d]``.
        heads: Weights and biases of signals by tensor name; those that are absent are drawn.
    """

    rows: FloatArray
    heads: Mapping[str, FloatArray] = dataclasses.field(default_factory=dict)


def orthonormal(directions: FloatArray, size: int, seed: int) -> FloatArray:
    """``size`` orthonormal rows that span the directions, float32 ``[size, d]``.

    Args:
        directions: ``[n, d]``, n at most ``size``; the rest is drawn.
        size: How many; at most d.
        seed: Of what is drawn.
    """
    count, width = directions.shape
    drawn = np.random.default_rng(seed).standard_normal((size - count, width))
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    basis, _ = np.linalg.qr(np.concatenate((directions / np.maximum(lengths, 1e-30), drawn)).T)
    return np.ascontiguousarray(basis.T, np.float32)


def check_probe(config: OtterConfig, base: BaseModel) -> None:
    """Whether a channel can be a probe of this base.

    Raises:
        ConfigError: It is wider than the base.
    """
    if config.hidden_size > base.dimensions.hidden_size:
        raise ConfigError(
            f"probe initialisation needs a channel no wider than the base: hidden size "
            f"{config.hidden_size} > {base.dimensions.hidden_size}; use --init normal"
        )


def probe_makers(config: OtterConfig, base: BaseModel, probe: Probe) -> dict[str, Maker]:
    """What makes each tensor that ``n' = R n`` fixes, by name."""
    start = functools.cache(lambda: _start(base, probe.rows))
    sites, final = channel_sites(config, base.sites), base.sites.norms[-1]
    makers: dict[str, Maker] = {name: lambda h=h: h for name, h in probe.heads.items()}  # type: ignore[misc]
    for name in sites.starts:
        makers[f"{name}.otter.projection"] = start
        makers[f"{name}.otter.table"] = functools.partial(_table, base, name, start)
    for norm in sites.norms:
        if norm.space is Space.HIDDEN:
            makers[f"{norm.name}.otter.weight"] = _filled((config.hidden_size,), 1.0)
            makers[f"{norm.name}.otter.bias"] = _filled((config.hidden_size,), 0.0)
    makers[f"{final.name}.otter.bias"] = lambda: probe.rows @ base.float32(f"{final.name}.bias")
    for site in sites.projections:
        if site.writes is Space.HIDDEN:
            shape = config.hidden_size, channel_width(config, site.reads)
            makers[f"{site.name}.otter.from_base"] = functools.partial(_product, base, site, start)
            makers[f"{site.name}.otter.from_channel"] = _filled(shape, 0.0)
            makers[f"{site.name}.otter.bias"] = functools.partial(_bias, base, site, start)
    return makers


def _start(base: BaseModel, rows: FloatArray) -> FloatArray:
    """P ``[d', d]``."""
    projection = rows * base.norm_weight(base.sites.norms[-1])
    if base.family.layer_norm:
        projection += (1 - projection.sum(1, keepdims=True)) / rows.shape[1]
    return np.ascontiguousarray(projection, np.float32)


def _filled(shape: tuple[int, ...], value: float) -> Maker:
    return lambda: np.full(shape, value, np.float32)


def _table(base: BaseModel, name: str, start: Maker) -> FloatArray:
    return base.float32(f"{name}.weight") @ start().T


def _written(base: BaseModel, site: ProjectionSite, start: Maker) -> FloatArray:
    """P, and the gain of a norm between the projection and the state, if there is one.

    That norm divides both streams by the base's statistics, as the final one does.
    """
    path = base.family.post_norms.get(site.parameter.removeprefix(f"{_layer(base, site)}."))
    if path is None:
        return start()
    norm = next(n for n in base.sites.norms if n.name == f"{_layer(base, site)}.{path}")
    return start() * base.norm_weight(norm)


def _layer(base: BaseModel, site: ProjectionSite) -> str:
    return base.sites.layers[site.layer]


def _product(base: BaseModel, site: ProjectionSite, start: Maker) -> FloatArray:
    return _written(base, site, start) @ base.projection(site)


def _bias(base: BaseModel, site: ProjectionSite, start: Maker) -> FloatArray:
    bias = base.projection_bias(site)
    if bias is None:
        raise ValueError(f"{site.parameter} has no bias")
    return _written(base, site, start) @ bias
