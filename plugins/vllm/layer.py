"""The channel's tensors in one layer, and what they compute; rows are tokens, ``[T, width]``.

Under tensor parallelism the base is divided among the ranks, and each holds the whole channel,
which is small: only the ``A`` of projections that read divided values are divided with them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from vllm.distributed import tensor_model_parallel_all_gather
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import RowParallelLinear

from otter_export.family import NormSite, ProjectionSite, Space

#: Gives an inserted tensor by its name.
Read = Callable[[str], Tensor]
_ATTENTION = (Space.QUERY, Space.KEY, Space.VALUE)


@dataclasses.dataclass(frozen=True)
class LayerSites:
    """The places of one layer at which a channel has tensors.

    Args:
        attention: Projections to queries, keys and values; to values alone where it is shared.
        inner: Those into the feed-forward's neurons.
        back: The attention's projection back to the state, and the feed-forward's.
        norms: Of the state, and of heads.
    """

    attention: tuple[ProjectionSite, ...]
    inner: tuple[ProjectionSite, ...]
    back: tuple[ProjectionSite, ProjectionSite]
    norms: tuple[NormSite, ...]

    @classmethod
    def of(
        cls, layer: int, projections: Sequence[ProjectionSite], norms: Sequence[NormSite]
    ) -> LayerSites:
        """Those of one layer among all."""
        own = [site for site in projections if site.layer == layer]
        from_attention, from_inner = (
            next(s for s in own if s.writes is Space.HIDDEN and s.reads is space)
            for space in (Space.QUERY, Space.INNER)
        )
        return cls(
            tuple(s for s in own if s.writes in _ATTENTION),
            tuple(s for s in own if s.writes is Space.INNER),
            (from_attention, from_inner),
            tuple(norm for norm in norms if norm.layer == layer),
        )


class Columns(nn.Module):
    """``A x + B x' + b'`` of projections that read the whole state.

    Args:
        rows: n'_out of each.
        reads: Widths of base and channel.
        bias: Whether they have one.
    """

    def __init__(self, rows: Sequence[int], reads: tuple[int, int], *, bias: bool) -> None:
        super().__init__()
        self.rows = list(rows)
        self.from_base = parameter(sum(rows), reads[0])
        self.from_channel = parameter(sum(rows), reads[1])
        self.bias = parameter(sum(rows)) if bias else None

    def forward(self, base: Tensor, channel: Tensor) -> Tensor:
        """``[T, n'_out]``, all of them behind each other."""
        projected = functional.linear(channel, self.from_channel, self.bias)
        return projected + functional.linear(base, self.from_base)

    def load(self, sites: Sequence[ProjectionSite], read: Read) -> None:
        """Read ``A``, ``B`` and ``b'`` of these places."""
        for name in ("from_base", "from_channel", "bias"):
            if (target := getattr(self, name)) is not None:
                copy(target, torch.cat([read(f"{site.name}.otter.{name}") for site in sites]))


class Rows(nn.Module):
    """``A x + B x' + b'`` of a projection that reads what is divided among the ranks."""

    def __init__(self, rows: int, reads: tuple[int, int], prefix: str, *, bias: bool) -> None:
        super().__init__()
        self.from_base = RowParallelLinear(
            reads[0], rows, bias=False, quant_config=None, prefix=f"{prefix}.from_base"
        )
        self.from_channel = parameter(rows, reads[1])
        self.bias = parameter(rows) if bias else None

    def forward(self, base: Tensor, channel: Tensor) -> Tensor:
        """``[T, n'_out]``, from the rank's own part of the base."""
        projected: Tensor = functional.linear(channel, self.from_channel, self.bias)
        return projected + self.from_base(base)[0]

    def load(self, site: ProjectionSite, read: Read) -> None:
        """Read the tensors of this place; each rank takes its columns of ``A``."""
        weight = self.from_base.weight
        weight.weight_loader(weight, read(f"{site.name}.otter.from_base"))
        copy(self.from_channel, read(f"{site.name}.otter.from_channel"))
        if self.bias is not None:
            copy(self.bias, read(f"{site.name}.otter.bias"))


class Norm(nn.Module):
    """gamma' and beta' of one norm, which takes its statistics elsewhere.

    Args:
        size: Of gamma'.
        epsilon: The base's.
        centred: Whether the mean is subtracted (LayerNorm).
        bias: Whether there is a beta'.
    """

    def __init__(self, size: int, epsilon: float, *, centred: bool, bias: bool) -> None:
        super().__init__()
        self.weight = parameter(size)
        self.bias = parameter(size) if bias else None
        self.epsilon, self.centred = epsilon, centred

    def forward(self, channel: Tensor, source: Tensor) -> Tensor:
        """``channel`` by the statistics of the last axis of ``source``, in float32."""
        wide, shifted = source.float(), channel.float()
        if self.centred:
            mean = wide.mean(-1, keepdim=True)
            wide, shifted = wide - mean, shifted - mean
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.epsilon)
        normed = (shifted * scale).to(channel.dtype) * self.weight
        return normed if self.bias is None else normed + self.bias

    def load(self, name: str, read: Read) -> None:
        """Read gamma' and beta'."""
        copy(self.weight, read(f"{name}.otter.weight"))
        if self.bias is not None:
            copy(self.bias, read(f"{name}.otter.bias"))


class SharedHeads(nn.Module):
    """Queries or keys of the base's heads that extra heads read again.

    Args:
        heads: Which, by their number in the whole base.
        size: Of a head.
        total: Heads of the base.
        ranks: Among which they are divided; a head may be on several.
    """

    heads: Tensor

    def __init__(self, heads: Tensor, size: int, total: int, ranks: int) -> None:
        super().__init__()
        self.size, self.ranks = size, ranks
        self.register_buffer("heads", heads * max(1, ranks // total), persistent=False)

    def forward(self, own: Tensor) -> Tensor:
        """The rank's ``[T, heads * size]`` to ``[T, len(heads) * size]`` on every rank."""
        whole = tensor_model_parallel_all_gather(own.contiguous()) if self.ranks > 1 else own
        by_head = whole.reshape(len(whole), -1, self.size)
        return by_head.index_select(-2, self.heads).flatten(-2)


def twin(base: Attention, heads: int, kv_heads: int, cache_config: object, name: str) -> Attention:
    """A layer's attention once more, with other heads and a cache of their own."""
    return Attention(
        heads,
        base.head_size,
        base.impl.scale,
        num_kv_heads=kv_heads,
        cache_config=cache_config,
        quant_config=None,
        logits_soft_cap=getattr(base.impl, "logits_soft_cap", None) or None,
        per_layer_sliding_window=base.sliding_window,
        prefix=name,
    )


def parameter(*shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
    """Memory for a tensor; in vLLM's default dtype, which is the model's."""
    return nn.Parameter(torch.empty(shape, dtype=dtype), requires_grad=False)


def copy(target: nn.Parameter, value: Tensor) -> None:
    """Fill a parameter; the checkpoint's shapes were checked when it was opened."""
    target.data.copy_(value.reshape(target.shape))
