"""Insertion of a channel into a Hugging Face model: which modules are replaced, and by what."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from otter_export.channel import base_heads, channel_sites, rows_of_heads
from otter_export.config import OtterConfig
from otter_export.family import (
    BaseDimensions,
    Family,
    NormSite,
    ProjectionSite,
    Sites,
    Space,
    channel_width,
)
from otter_export.modeling.layers import (
    BaseHead,
    PaddedEmbedding,
    ProjectionWidths,
    Repeated,
    WidenedActivation,
    WidenedEmbedding,
    WidenedFusedProjection,
    WidenedHeadNorm,
    WidenedNorm,
    WidenedProjection,
    begin_at,
    cut_at,
)
from otter_export.modeling.query_groups import QueryGroups, use_query_groups


def insert_channel(
    model: nn.Module, config: OtterConfig, family: Family, base: BaseDimensions, sites: Sites
) -> None:
    """Widen a Hugging Face causal LM in place, from the channel's first layer on.

    Args:
        model: The base as transformers loads it.
        config: Widths and shape of the channel.
        family: The base's family.
        base: Its sizes.
        sites: Its sites.
    """
    first = config.first_layer
    for norm in sites.norms:
        if norm.layer is None or norm.layer >= first:
            module = model.get_submodule(norm.name)
            _replace(model, norm.name, _norm(module, norm, config, family, base))
    by_parameter: dict[str, list[ProjectionSite]] = defaultdict(list)
    for site in sites.projections:
        if site.layer >= first:
            by_parameter[site.parameter].append(site)
    for name, parts in by_parameter.items():
        _replace(model, name, _projection(model.get_submodule(name), parts, config, base))
    attentions = {
        site.parameter.rpartition(".")[0]
        for parts in by_parameter.values()
        for site in parts
        if site.reads is Space.QUERY
    }
    groups = QueryGroups.of(base, config)
    if groups.differ:
        for name in sorted(attentions):
            use_query_groups(model.get_submodule(name), groups)
    for layer in sites.layers[first:]:
        for path in family.activations:
            name = f"{layer}.{path}"
            activation = WidenedActivation(model.get_submodule(name), base.intermediate_size)
            _replace(model, name, activation)
        for path, attribute, space in family.resized:
            _resize(model.get_submodule(f"{layer}.{path}"), attribute, space, config)
    _begin(model, config, base, sites)
    # Files may have another name for the head than the model has (GPT-NeoX).
    head = model.get_output_embeddings()  # type: ignore[operator]
    assert isinstance(head, nn.Linear)
    name = next(name for name, module in model.named_modules() if module is head)
    _replace(model, name, BaseHead(head, base.hidden_size))


def _begin(model: nn.Module, config: OtterConfig, base: BaseDimensions, sites: Sites) -> None:
    """Let the channel begin: at the embeddings, or at one place inside the base."""
    for name, _ in sites.embeddings:
        embedding = model.get_submodule(name)
        assert isinstance(embedding, nn.Embedding)
        widened: nn.Module = (
            PaddedEmbedding(embedding, config.hidden_size)
            if config.first_layer
            else WidenedEmbedding(embedding, config.embedding, config.hidden_size)
        )
        _replace(model, name, widened)
    if config.first_layer:
        (start,) = channel_sites(config, sites).starts
        cut_at(model.get_submodule(sites.layers[0]), base.hidden_size)
        begin_at(model.get_submodule(start), base.hidden_size, config.hidden_size)


def _norm(
    module: nn.Module, norm: NormSite, config: OtterConfig, family: Family, base: BaseDimensions
) -> nn.Module:
    """A norm of the state, of all heads, or of each head."""
    axis, size = norm.axis, norm.channel_size(config)
    heads = base.width(norm.space) // base.head_dim
    if _is_shared(config, norm.space):
        shared = _shared_heads(config, base, norm.space)
        if axis is None:
            rows = torch.from_numpy(rows_of_heads(shared, base.head_dim))
            return Repeated(module, -1, norm.base_size(base), rows)
        return Repeated(module, axis, heads, torch.from_numpy(shared))
    if axis is None:
        return WidenedNorm(module, family.layer_norm, norm.base_size(base), size)
    return WidenedHeadNorm(module, family.layer_norm, heads, axis, size)


def _projection(
    module: nn.Module, parts: Sequence[ProjectionSite], config: OtterConfig, base: BaseDimensions
) -> nn.Module:
    """A projection, or a fused one of several parts."""
    shared = {s.part: _shared_rows(config, base, s) for s in parts if _is_shared(config, s.writes)}
    if parts[0].part is None:
        widths = _widths(config, base, parts[0])
        if None in shared:
            return Repeated(module, -1, widths.base_in, shared[None])
        return WidenedProjection(module, widths)
    return WidenedFusedProjection(
        module,
        {str(s.part): _widths(config, base, s) for s in parts},
        parts[0].head,
        {str(part): rows for part, rows in shared.items()},
    )


def _is_shared(config: OtterConfig, space: Space) -> bool:
    """Whether the base's own heads take the place of extra ones."""
    return config.attention == "shared" and space in (Space.QUERY, Space.KEY)


def _shared_heads(config: OtterConfig, base: BaseDimensions, space: Space) -> Any:
    """The base's heads in the place of extra ones, ``[H']`` or ``[H'kv]``."""
    is_query = space is Space.QUERY
    return base_heads(config, base) if is_query else np.arange(config.num_key_value_heads)


def _shared_rows(config: OtterConfig, base: BaseDimensions, site: ProjectionSite) -> Tensor:
    """Their rows in what the base's module writes."""
    heads = _shared_heads(config, base, site.writes)
    return torch.from_numpy(site.rows(rows_of_heads(heads, base.head_dim)))


def _resize(owner: Any, attribute: str, space: Space, config: OtterConfig) -> None:
    """Let an integer attribute count the channel too; see `Family.resized`."""
    if attribute.startswith("config."):
        owner.config = copy.copy(owner.config)
        owner, attribute = owner.config, attribute.removeprefix("config.")
    width = channel_width(config, space)
    more = width // config.head_dim if attribute.endswith("_heads") else width
    setattr(owner, attribute, getattr(owner, attribute) + more)


def _widths(config: OtterConfig, base: BaseDimensions, site: ProjectionSite) -> ProjectionWidths:
    return ProjectionWidths(
        base_in=base.width(site.reads),
        channel_in=channel_width(config, site.reads),
        base_out=base.width(site.writes),
        channel_out=channel_width(config, site.writes),
    )


def _replace(model: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)
