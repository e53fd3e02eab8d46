"""Initial values of a channel's tensors: ``copy``, ``normal``, ``random`` and ``probe``.

``copy`` takes fixed index sets: S of d' hidden units, M of m' neurons (both evenly spaced), the
first H'kv key/value heads, and the first H'/H'kv query heads of each of them. With
``A = W[out-set, :]``, ``B = 0``, ``gamma' = gamma[S]`` and ``P = I[S, :]`` the channel's state
equals ``x[S]`` from its first layer on. ``probe`` is in `otter_export.probe`.
numpy only: the streaming ``insert`` command and the torch reference both use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export.base_model import BaseModel
from otter_export.channel import base_heads, channel_sites, expected_tensors, rows_of_heads
from otter_export.config import OtterConfig
from otter_export.errors import ConfigError
from otter_export.family import ProjectionSite, Space, channel_width
from otter_export.probe import Maker, Probe, check_probe, orthonormal, probe_makers
from otter_export.safetensors_io import FloatArray
from otter_export.signals import block_name, is_token_ids, kind_of

#: Standard deviation of ``normal``; that of GPT-2 and Llama initialisation.
NORMAL_STD = 0.02


def evenly_spaced(count: int, size: int) -> npt.NDArray[np.int64]:
    """``count`` evenly spaced indices below ``size``: ``floor(i * size / count)``."""
    return np.arange(count, dtype=np.int64) * size // count


def copied_rows(config: OtterConfig, base: BaseModel, space: Space) -> npt.NDArray[np.int64]:
    """The base indices that the channel copies in a space (S, M, or the first heads' rows)."""
    count, size = channel_width(config, space), base.dimensions.width(space)
    if count > size:
        raise ConfigError(
            f"copy initialisation needs a channel no wider than the base: {space.value} "
            f"{count} > {size}; use --init normal or smaller widths"
        )
    if space in (Space.KEY, Space.VALUE):
        return np.arange(count, dtype=np.int64)
    if space is Space.QUERY:
        return rows_of_heads(base_heads(config, base.dimensions), config.head_dim)
    return evenly_spaced(count, size)


def initial_tensors(
    config: OtterConfig, base: BaseModel, seed: int = 0, probe: Probe | None = None
) -> Iterator[tuple[str, tuple[int, ...], Maker]]:
    """Yield ``(name, shape, make)`` for every inserted tensor; nothing is read until ``make()``.

    Each random tensor has its own generator, seeded by ``seed`` and its position, so that values do
    not depend on which tensors were made before. ``probe`` is for the initialisation of that name;
    None draws one.

    Raises:
        ConfigError: The channel is too wide for its initialisation.
    """
    makers: dict[str, Maker] = {}
    if config.initialization == "copy":
        makers = _copy_makers(config, base)
    elif config.initialization == "probe":
        check_probe(config, base)
        makers = _copy_makers(config, base) | probe_makers(
            config, base, probe or _drawn_probe(config, base, seed)
        )
    shapes = expected_tensors(config, base)
    for signal in config.signals:
        if signal.residual:  # a block of zeros is its input
            block = f"{block_name(signal)}.weight"
            makers.setdefault(block, _zeros(shapes[block]))
        if kind_of(signal).starts_at_zero:
            makers[f"signals.{signal.name}.weight"] = _zeros(
                shapes[f"signals.{signal.name}.weight"]
            )
    for index, (name, shape) in enumerate(shapes.items()):
        make = makers.get(name)
        if make is None:
            make = _drawn(name, shape, config.initialization, np.random.SeedSequence([seed, index]))
        yield name, shape, make


def _drawn_probe(config: OtterConfig, base: BaseModel, seed: int) -> Probe:
    """A random orthonormal R."""
    none = np.zeros((0, base.dimensions.hidden_size), np.float32)
    return Probe(orthonormal(none, config.hidden_size, seed))


def _drawn(
    name: str, shape: tuple[int, ...], initialization: str, seed: np.random.SeedSequence
) -> Maker:
    """Biases are zero, norm weights one; most heads are drawn, alike in every initialisation."""

    def make() -> FloatArray:
        if is_token_ids(name):
            # Tokenizers number their merges from the most frequent on.
            return np.arange(*shape, dtype=np.float32)
        if name.endswith(".bias"):
            return np.zeros(shape, np.float32)
        if name.endswith(".otter.weight"):
            return np.ones(shape, np.float32)
        generator = np.random.default_rng(seed)
        if initialization == "random" and not name.startswith("signals."):
            # torch.nn.Linear's default: uniform in +-1/sqrt(fan_in).
            limit = 1.0 / np.sqrt(shape[-1])
            return generator.uniform(-limit, limit, shape).astype(np.float32)
        return (generator.standard_normal(shape) * NORMAL_STD).astype(np.float32)

    return make


def _copy_makers(config: OtterConfig, base: BaseModel) -> dict[str, Maker]:
    sites = channel_sites(config, base.sites)
    written = {site.writes for site in sites.projections} | {norm.space for norm in sites.norms}
    rows = {space: copied_rows(config, base, space) for space in Space if space in written}
    hidden = rows[Space.HIDDEN]
    makers: dict[str, Maker] = {}
    for name in sites.starts:
        makers[f"{name}.otter.projection"] = _one_hot(hidden, base.dimensions.hidden_size)
        makers[f"{name}.otter.table"] = _take(base.float32, f"{name}.weight", np.s_[:, hidden])
    for norm in sites.norms:
        index = rows[norm.space] if norm.axis is None else np.s_[:]
        makers[f"{norm.name}.otter.weight"] = _take(base.norm_weight, norm, index)
        makers[f"{norm.name}.otter.bias"] = _take(base.float32, f"{norm.name}.bias", index)
    for site in sites.projections:
        out = rows[site.writes]
        makers[f"{site.name}.otter.from_base"] = _take(base.projection, site, out)
        makers[f"{site.name}.otter.from_channel"] = _zeros(
            (channel_width(config, site.writes), channel_width(config, site.reads))
        )
        makers[f"{site.name}.otter.bias"] = _bias(base, site, out)
    return makers


def _take(read: Callable[[Any, Any], FloatArray], key: Any, index: Any) -> Maker:
    return lambda: np.ascontiguousarray(read(key, index))


def _one_hot(indices: npt.NDArray[np.int64], size: int) -> Maker:
    """Rows of an identity matrix, without the matrix."""
    return lambda: (indices[:, None] == np.arange(size)).astype(np.float32)


def _zeros(shape: tuple[int, ...]) -> Maker:
    return lambda: np.zeros(shape, np.float32)


def _bias(base: BaseModel, site: ProjectionSite, out: npt.NDArray[np.int64]) -> Maker:
    def make() -> FloatArray:
        bias = base.projection_bias(site)
        if bias is None:
            raise ValueError(f"{site.parameter} has no bias")
        return bias[out]

    return make
