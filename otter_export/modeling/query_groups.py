"""Attention over channel heads that share keys among fewer queries than base heads do.

transformers' attention runs base and channel heads together, and gives each key/value head the
base's number of query heads. Where the channel has fewer, queries of zeros fill them up, inside the
attention function: behind norms, rotation and cache, none of which sees them.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from otter_export.config import OtterConfig
from otter_export.family import BaseDimensions

_NAME = "otter_query_groups"


@dataclasses.dataclass(frozen=True)
class QueryGroups:
    """Query heads of base and channel.

    Args:
        base_heads: H.
        base_group: Query heads for each key/value head of the base.
        channel_group: Likewise of the channel; at most as many.
    """

    base_heads: int
    base_group: int
    channel_group: int

    @classmethod
    def of(cls, base: BaseDimensions, config: OtterConfig) -> QueryGroups:
        """Groups of a base and its channel."""
        return cls(
            base.num_attention_heads,
            base.num_attention_heads // base.num_key_value_heads,
            config.num_attention_heads // config.num_key_value_heads,
        )

    @property
    def differ(self) -> bool:
        """Whether there is anything to fill."""
        return self.base_group != self.channel_group

    def fill(self, queries: Tensor) -> Tensor:
        """``[B, H + H', S, e]`` to ``[B, H + H'kv * H/Hkv, S, e]``, zeros in each group's rest."""
        base, channel = queries[:, : self.base_heads], queries[:, self.base_heads :]
        batch, _, step, size = channel.shape
        groups = channel.reshape(batch, -1, self.channel_group, step, size)
        missing = self.base_group - self.channel_group
        filled = functional.pad(groups, (0, 0, 0, 0, 0, missing))
        return torch.cat((base, filled.flatten(1, 2)), dim=1)

    def drop(self, heads: Tensor) -> Tensor:
        """``[B, S, H + H'kv * H/Hkv, e]`` to ``[B, S, H + H', e]``, without what `fill` added."""
        base, channel = heads[:, :, : self.base_heads], heads[:, :, self.base_heads :]
        groups = channel.reshape(*channel.shape[:2], -1, self.base_group, channel.shape[-1])
        return torch.cat((base, groups[:, :, :, : self.channel_group].flatten(2, 3)), dim=2)


def use_query_groups(attention: Any, groups: QueryGroups) -> None:
    """Let an attention module of transformers compute channel heads in groups of their own.

    Only its own copy of the configuration names another function: masks depend on the model's.
    """
    attention.otter_query_groups = groups
    attention.otter_attention_name = attention.config._attn_implementation
    attention.config = copy.copy(attention.config)
    attention.config._attn_implementation = _NAME


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **kwargs: Any
) -> tuple[Tensor, None]:
    """An attention function of transformers; nothing here reads the weights, so none come back."""
    groups = module.otter_query_groups
    eager = sys.modules[type(module).__module__].eager_attention_forward
    function = ALL_ATTENTION_FUNCTIONS.get_interface(module.otter_attention_name, eager)
    heads, _ = function(module, groups.fill(query), key, value, attention_mask, **kwargs)
    return groups.drop(heads), None


ALL_ATTENTION_FUNCTIONS.register(_NAME, _attend)
