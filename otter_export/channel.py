"""The inserted tensors of a channel: which there are, and of what shapes."""

from __future__ import annotations

import functools

from otter_export.base_model import BaseModel
from otter_export.config import OtterConfig
from otter_export.family import (
    BaseDimensions,
    channel_width,
)


def expected_tensors(config: OtterConfig, base: BaseModel) -> dict[str, tuple[int, ...]]:
    """Name and shape of every inserted tensor, in forward order.

    ``A`` is ``[n'_out, n_in]``, ``B`` is ``[n'_out, n'_in]``, as in the contract.
    """
    d = base.dimensions
    width = functools.partial(channel_width, config)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, rows in base.sites.embeddings:
        if config.embedding == "projection":
            shapes[f"{name}.otter.projection"] = (config.hidden_size, d.hidden_size)
        else:
            shapes[f"{name}.otter.table"] = (rows, config.hidden_size)
    for norm in base.sites.norms:
        shapes[f"{norm.name}.otter.weight"] = (norm.channel_size(config),)
        if f"{norm.name}.bias" in base.tensors:
            shapes[f"{norm.name}.otter.bias"] = (norm.channel_size(config),)
    for site in base.sites.projections:
        shapes[f"{site.name}.otter.from_base"] = (width(site.writes), d.width(site.reads))
        shapes[f"{site.name}.otter.from_channel"] = (width(site.writes), width(site.reads))
        if f"{site.parameter}.bias" in base.tensors:
            shapes[f"{site.name}.otter.bias"] = (width(site.writes),)
    for signal in config.signals:
        weight = signal.weight_shape(config.hidden_size, d.vocab_size)
        shapes[f"signals.{signal.name}.weight"] = weight
        shapes[f"signals.{signal.name}.bias"] = weight[:-1]
    return shapes


def check_widths(config: OtterConfig, base: BaseDimensions) -> list[str]:
    """What is inconsistent between a channel's widths and its base."""
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
    return problems
