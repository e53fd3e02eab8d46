"""Where a channel of some shape has tensors, and which: their names and shapes.

A channel's shape is a dial (docs/checkpoint.md, version 2): the layer that it begins at, and
whether its value heads read the base's attention weights or it has queries and keys of its own.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import numpy.typing as npt

from otter_export.base_model import BaseModel
from otter_export.config import OtterConfig
from otter_export.family import (
    BaseDimensions,
    NormSite,
    ProjectionSite,
    Sites,
    Space,
    channel_width,
)
from otter_export.signals import block_name, kind_of, token_ids_name

#: What a channel with shared attention has no tensors for.
_OF_WEIGHTS = (Space.QUERY, Space.KEY)


@dataclasses.dataclass(frozen=True)
class ChannelSites:
    """The places at which a channel has tensors, in forward order.

    Args:
        starts: Stems of what it begins with: the embeddings, or the one place inside the base whose
            state ``x`` it projects, ``x' = P x``.
        norms: Its norms.
        projections: Its projections.
    """

    starts: tuple[str, ...]
    norms: tuple[NormSite, ...]
    projections: tuple[ProjectionSite, ...]


def channel_sites(config: OtterConfig, sites: Sites) -> ChannelSites:
    """Where a channel is inserted into a base with these sites.

    Raises:
        IndexError: It begins behind the last layer's end; `check_widths` says so in words.
    """
    is_shared = config.attention == "shared"

    def has(layer: int | None, space: Space) -> bool:
        is_reached = layer is None or layer >= config.first_layer
        return is_reached and not (is_shared and space in _OF_WEIGHTS)

    inside = (*sites.layers, sites.norms[-1].name)[config.first_layer]
    return ChannelSites(
        starts=(inside,) if config.first_layer else tuple(name for name, _ in sites.embeddings),
        norms=tuple(norm for norm in sites.norms if has(norm.layer, norm.space)),
        projections=tuple(site for site in sites.projections if has(site.layer, site.writes)),
    )


def expected_tensors(config: OtterConfig, base: BaseModel) -> dict[str, tuple[int, ...]]:
    """Name and shape of every inserted tensor, in forward order.

    ``A`` is ``[n'_out, n_in]``, ``B`` is ``[n'_out, n'_in]``, as in the contract.
    """
    d, sites = base.dimensions, channel_sites(config, base.sites)
    width = functools.partial(channel_width, config)
    rows = dict(base.sites.embeddings)
    shapes: dict[str, tuple[int, ...]] = {}
    for name in sites.starts:
        if config.embedding == "projection":
            shapes[f"{name}.otter.projection"] = (config.hidden_size, d.hidden_size)
        else:
            shapes[f"{name}.otter.table"] = (rows[name], config.hidden_size)
    for norm in sites.norms:
        shapes[f"{norm.name}.otter.weight"] = (norm.channel_size(config),)
        if f"{norm.name}.bias" in base.tensors:
            shapes[f"{norm.name}.otter.bias"] = (norm.channel_size(config),)
    for site in sites.projections:
        shapes[f"{site.name}.otter.from_base"] = (width(site.writes), d.width(site.reads))
        shapes[f"{site.name}.otter.from_channel"] = (width(site.writes), width(site.reads))
        if f"{site.parameter}.bias" in base.tensors:
            shapes[f"{site.name}.otter.bias"] = (width(site.writes),)
    for signal in config.signals:
        weight = kind_of(signal).weight_shape(signal, config.hidden_size, d.vocab_size)
        shapes[f"signals.{signal.name}.weight"] = weight
        shapes[f"signals.{signal.name}.bias"] = weight[:-1]
        if signal.residual:
            stem, size = block_name(signal), (signal.heads, config.hidden_size)
            shapes |= {f"{stem}.weight": (*size, config.hidden_size), f"{stem}.bias": size}
        if signal.draft_vocab is not None:
            shapes[token_ids_name(signal)] = (signal.draft_vocab,)
    return shapes


def base_heads(config: OtterConfig, base: BaseDimensions) -> npt.NDArray[np.int64]:
    """The base's query head in the place of each extra one, ``[H']``.

    The extra key/value heads stand for the first H'kv of the base, and the queries of each of them
    for the first of its group. ``copy`` copies these heads, and ``shared`` reads their weights.
    """
    group = base.num_attention_heads // base.num_key_value_heads
    return first_heads(config.num_attention_heads, config.num_key_value_heads, group)


def first_heads(heads: int, kv_heads: int, group: int) -> npt.NDArray[np.int64]:
    """The first of each of the first groups of query heads, ``[heads]``.

    Args:
        heads: How many.
        kv_heads: Groups, one for a key/value head.
        group: Query heads of a whole one.
    """
    return (np.arange(kv_heads)[:, None] * group + np.arange(heads // kv_heads)).reshape(-1)


def rows_of_heads(heads: npt.NDArray[np.int64], size: int) -> npt.NDArray[np.int64]:
    """Rows of a projection that write these heads, ``size`` each."""
    return (heads[:, None] * size + np.arange(size)).reshape(-1)


def shape_words(config: OtterConfig, layers: int) -> str:
    """Where a channel over a base of so many layers begins, and whose attention it has."""
    if config.first_layer == layers:
        return "a probe on the last state"
    start = f"{config.embedding} embedding"
    if config.first_layer:
        start = f"from layer {config.first_layer} of {layers}"
    return start if config.attention == "own" else f"{start}, {config.attention} attention"


def check_widths(config: OtterConfig, base: BaseDimensions) -> list[str]:
    """What of a channel does not fit its base."""
    problems = []
    if config.head_dim != base.head_dim:
        problems.append(f"head_dim is {config.head_dim}, the base's is {base.head_dim}")
    ours = config.num_attention_heads * base.num_key_value_heads
    if ours > base.num_attention_heads * config.num_key_value_heads:
        problems.append(
            f"{config.num_attention_heads} query heads over {config.num_key_value_heads} key/value "
            f"heads: a key/value head may have as many query heads as in the base, "
            f"{base.num_attention_heads} over {base.num_key_value_heads}, and not more"
        )
    if config.first_layer > base.num_hidden_layers:
        problems.append(
            f"first_layer is {config.first_layer}, and the base has {base.num_hidden_layers} "
            f"layers; {base.num_hidden_layers} is a probe on its last state"
        )
    if config.attention == "shared" and config.num_key_value_heads > base.num_key_value_heads:
        problems.append(
            f"{config.num_key_value_heads} key/value heads cannot share the attention of a base "
            f"that has {base.num_key_value_heads}"
        )
    return problems
