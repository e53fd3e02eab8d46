"""Widened modules: drop-in replacements that carry the state ``[x ; x']`` in one tensor.

The last dimension of every hidden state is d + d'. Each module splits it, computes the base part by
the untouched module's own arithmetic (so base values stay bit-identical) and the channel part
beside it, and joins the two. The base part is detached: no base value depends on the channel, so
no gradient has to flow there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclasses.dataclass(frozen=True)
class ProjectionWidths:
    """Widths of one logical projection: base and channel, in and out."""

    base_in: int
    channel_in: int
    base_out: int
    channel_out: int


class ChannelProjection(nn.Module):
    """The inserted tensors of one projection: ``y' = A x + B x' + b'`` (paper section 3.2).

    Attributes:
        from_base: A, ``[n'_out, n_in]``.
        from_channel: B, ``[n'_out, n'_in]``.
        bias: b', ``[n'_out]``, or None where the base has no bias.
    """

    bias: nn.Parameter | None

    def __init__(self, widths: ProjectionWidths, *, bias: bool) -> None:
        super().__init__()
        self.from_base = nn.Parameter(torch.zeros(widths.channel_out, widths.base_in))
        self.from_channel = nn.Parameter(torch.zeros(widths.channel_out, widths.channel_in))
        self.bias = nn.Parameter(torch.zeros(widths.channel_out)) if bias else None

    def forward(self, base: Tensor, channel: Tensor) -> Tensor:
        """``[..., n_in]`` and ``[..., n'_in]`` to ``[..., n'_out]``."""
        projected = functional.linear(channel, self.from_channel, self.bias)
        return projected + functional.linear(base, self.from_base)


class WidenedProjection(nn.Module):
    """A Linear or Conv1D with one logical projection.

    The module keeps the base parameters under their own names (``weight``, ``bias``) and the
    inserted ones under ``otter``, so its state dict has the names of the checkpoint format.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(self, base: nn.Module, widths: ProjectionWidths) -> None:
        super().__init__()
        self.weight, self.bias = _parameters(base)
        self.transposed = not isinstance(base, nn.Linear)
        self.widths = widths
        self.otter = ChannelProjection(widths, bias=self.bias is not None)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., n_in + n'_in]`` to ``[..., n_out + n'_out]``."""
        base, channel = split_state(x, self.widths.base_in)
        y = base_projection(base, self.weight, self.bias, self.transposed)
        return torch.cat((y, self.otter(base, channel)), dim=-1)


class ChannelPart(nn.Module):
    """One part (q, k or v) of a fused projection: holds ``otter`` to give it its name."""

    def __init__(self, widths: ProjectionWidths, *, bias: bool) -> None:
        super().__init__()
        self.otter = ChannelProjection(widths, bias=bias)

    def forward(self, base: Tensor, channel: Tensor) -> Tensor:
        """As `ChannelProjection`."""
        return self.otter(base, channel)  # type: ignore[no-any-return]


class WidenedFusedProjection(nn.Module):
    """A fused projection (GPT-2's ``c_attn``); its output is ``[q ; q' ; k ; k' ; v ; v']``.

    With ``head`` (its rows, and those of all parts of a head) the parts of a head lie together, and
    the output is ``[q1 ; k1 ; v1 ; q2 ; ... ; q'1 ; k'1 ; v'1 ; ...]``. Parts in ``shared`` have no
    tensors: their channel rows are these rows of the base's output.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None

    def __init__(
        self,
        base: nn.Module,
        parts: dict[str, ProjectionWidths],
        head: tuple[int, int] | None = None,
        shared: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.head = head
        self.weight, self.bias = _parameters(base)
        self.transposed = not isinstance(base, nn.Linear)
        self.widths = dict(parts)
        self.shared = dict(shared or {})
        for name, widths in parts.items():
            if name not in self.shared:
                self.add_module(name, ChannelPart(widths, bias=self.bias is not None))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., n_in + n'_in]`` to ``[..., sum of (n_out + n'_out)]``."""
        base, channel = split_state(x, next(iter(self.widths.values())).base_in)
        y = base_projection(base, self.weight, self.bias, self.transposed)
        channels = [
            y[..., self.shared[name]] if name in self.shared else self._part(name)(base, channel)
            for name in self.widths
        ]
        if self.head is not None:
            heads = [part.unflatten(-1, (-1, self.head[0])) for part in channels]
            return torch.cat((y, torch.stack(heads, dim=-2).flatten(-3)), dim=-1)
        rows = torch.split(y, [w.base_out for w in self.widths.values()], dim=-1)
        return torch.cat([x for pair in zip(rows, channels, strict=True) for x in pair], dim=-1)

    def _part(self, name: str) -> ChannelPart:
        part = self.get_submodule(name)
        assert isinstance(part, ChannelPart)
        return part


class Repeated(nn.Module):
    """A base module some of whose heads stand in for extra ones: attention that is shared.

    Args:
        base: A projection to queries or keys, or a norm of them.
        axis: Where base and channel lie behind each other in its input, and heads in its output.
        size: The base's part of the input.
        rows: ``[n]``: what of the output is repeated behind it.
    """

    def __init__(self, base: nn.Module, axis: int, size: int, rows: Tensor) -> None:
        super().__init__()
        self.weight = base.weight
        self.bias = getattr(base, "bias", None)
        self._base = (base,)
        self.axis, self.size, self.rows = axis, size, rows

    def forward(self, x: Tensor) -> Tensor:
        """The base's output, and the rows that are repeated."""
        y = self._base[0](x.narrow(self.axis, 0, self.size).detach().contiguous())
        return torch.cat((y, y.index_select(self.axis, self.rows.to(y.device))), dim=self.axis)


class ChannelNorm(nn.Module):
    """gamma' (``weight``) and beta' (``bias``) of one norm."""

    bias: nn.Parameter | None

    def __init__(self, size: int, *, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if bias else None

    def forward(self, normed: Tensor) -> Tensor:
        """``[..., size]`` times gamma', plus beta'."""
        # Training may hold them in float32 beside bfloat16 states.
        scaled = normed * self.weight.to(normed.dtype)
        return scaled if self.bias is None else scaled + self.bias.to(normed.dtype)


class _AnyNorm(nn.Module):
    """The base's norm and the channel's part of it: an RMSNorm, or a LayerNorm."""

    bias: nn.Parameter | None

    def __init__(self, base: nn.Module, is_layer_norm: bool, channel_size: int) -> None:
        super().__init__()
        self.weight = base.weight
        self.bias = getattr(base, "bias", None)
        self.is_layer_norm = is_layer_norm
        self.epsilon = _epsilon(base)
        # The base's own forward keeps the base part bit-identical; the tuple hides it from the
        # module tree, so that its parameters are not listed twice.
        self._base = (base,)
        self.otter = ChannelNorm(channel_size, bias=self.bias is not None)

    def channel_part(self, channel: Tensor, source: Tensor) -> Tensor:
        """``channel`` normalised by the statistics of the last axis of ``source``, in float32."""
        statistics_dtype = torch.promote_types(channel.dtype, torch.float32)
        wide, shifted = source.to(statistics_dtype), channel.to(statistics_dtype)
        if self.is_layer_norm:
            mean = wide.mean(-1, keepdim=True)
            wide, shifted = wide - mean, shifted - mean
        variance = wide.pow(2).mean(-1, keepdim=True)
        normed = shifted * torch.rsqrt(variance + self.epsilon)
        return self.otter(normed.to(channel.dtype))  # type: ignore[no-any-return]


class WidenedNorm(_AnyNorm):
    """A norm whose statistics come from the base part alone."""

    def __init__(
        self, base: nn.Module, is_layer_norm: bool, base_size: int, channel_size: int
    ) -> None:
        super().__init__(base, is_layer_norm, channel_size)
        self.base_size = base_size

    def forward(self, x: Tensor) -> Tensor:
        """``[..., d + d']`` to the same shape."""
        base, channel = split_state(x, self.base_size)
        return torch.cat((self._base[0](base), self.channel_part(channel, base)), dim=-1)


class WidenedHeadNorm(_AnyNorm):
    """A norm of each head by its own statistics: base heads by gamma, extra heads by gamma'."""

    def __init__(
        self, base: nn.Module, is_layer_norm: bool, heads: int, axis: int, size: int
    ) -> None:
        super().__init__(base, is_layer_norm, size)
        self.heads, self.axis = heads, axis

    def forward(self, x: Tensor) -> Tensor:
        """Heads ``H + H'`` along ``axis``, the values of a head along the last axis."""
        extra = x.shape[self.axis] - self.heads
        base, channel = torch.split(x, [self.heads, extra], dim=self.axis)
        own = self._base[0](base.detach().contiguous())
        return torch.cat((own, self.channel_part(channel, channel)), dim=self.axis)


class ChannelEmbedding(nn.Module):
    """P (``projection``, ``[d', d]``) or a table ``[rows, d']``, as the config says."""

    projection: nn.Parameter | None
    table: nn.Parameter | None

    def __init__(self, kind: str, rows: int, base_size: int, channel_size: int) -> None:
        super().__init__()
        is_table = kind == "table"
        self.projection = None if is_table else nn.Parameter(torch.zeros(channel_size, base_size))
        self.table = nn.Parameter(torch.zeros(rows, channel_size)) if is_table else None


class WidenedEmbedding(nn.Module):
    """An embedding that gives ``[x0 ; x'0]`` with ``x'0 = P x0``, or from a table."""

    def __init__(self, base: nn.Embedding, kind: str, channel_size: int) -> None:
        super().__init__()
        self.weight = base.weight
        self._base = (base,)
        rows, size = base.weight.shape
        self.otter = ChannelEmbedding(kind, rows, size, channel_size)

    def forward(self, ids: Tensor) -> Tensor:
        """``[...]`` token or position ids to ``[..., d + d']``."""
        base = self._base[0](ids)
        if self.otter.table is not None:
            # Gemma's embedding multiplies by a factor, which the graph applies to both streams.
            factor = getattr(self._base[0], "scalar_embed_scale", 1.0)
            channel = functional.embedding(ids, self.otter.table) * factor
        else:
            assert self.otter.projection is not None
            channel = functional.linear(base, self.otter.projection)
        return torch.cat((base, channel.to(base.dtype)), dim=-1)


class PaddedEmbedding(nn.Module):
    """An embedding that gives ``[x0 ; 0]``, of a channel that begins inside the base.

    The layers below it do not see the zeros (`cut_at`); forwards of transformers that note the
    state's size before the first layer and expect it behind the last (GPT-2) do.
    """

    def __init__(self, base: nn.Embedding, channel_size: int) -> None:
        super().__init__()
        self.weight = base.weight
        self._base = (base,)
        self.channel_size = channel_size

    def forward(self, ids: Tensor) -> Tensor:
        """``[...]`` token or position ids to ``[..., d + d']``."""
        return functional.pad(self._base[0](ids), (0, self.channel_size))


def cut_at(layer: nn.Module, base_size: int) -> None:
    """Let a module get the base part alone, ``[..., d]``."""

    def cut(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (split_state(arguments[0], base_size)[0], *arguments[1:])

    layer.register_forward_pre_hook(cut)


def begin_at(place: nn.Module, base_size: int, channel_size: int) -> None:
    """Let a module get ``[x ; P x]`` for ``x``; ``P`` ``[d', d]`` is its ``otter.projection``.

    Args:
        place: A decoder layer, or the final norm, which is widened already.
        base_size: d.
        channel_size: d'.
    """
    projection = nn.Parameter(torch.zeros(channel_size, base_size))
    inserted: nn.Module = getattr(place, "otter", nn.Module())
    inserted.register_parameter("projection", projection)
    place.add_module("otter", inserted)

    def begin(module: Any, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        base, *others = arguments
        channel = functional.linear(base, module.otter.projection)
        return (torch.cat((base, channel.to(base.dtype)), dim=-1), *others)

    place.register_forward_pre_hook(begin)


class WidenedActivation(nn.Module):
    """An element-wise activation, applied to the two streams apart.

    PyTorch's vectorised loops compute the last few elements of a tensor by scalar code, whose
    ``exp`` and ``tanh`` round otherwise: on the joined state, base values that happen to lie at the
    end would change with the channel's width.
    """

    def __init__(self, base: nn.Module, base_size: int) -> None:
        super().__init__()
        self.base = base
        self.base_size = base_size

    def forward(self, x: Tensor) -> Tensor:
        """``[..., m + m']`` to the same shape."""
        base, channel = split_state(x, self.base_size)
        return torch.cat((self.base(base), self.base(channel)), dim=-1)


class BaseHead(nn.Module):
    """The language model head, reading the base part of the final state only."""

    bias: nn.Parameter | None

    def __init__(self, base: nn.Linear, base_size: int) -> None:
        super().__init__()
        self.weight, self.bias = base.weight, base.bias
        self.base_size = base_size

    def forward(self, x: Tensor) -> Tensor:
        """``[..., d + d']`` or ``[..., d]`` to logits ``[..., V]``."""
        return functional.linear(split_state(x, self.base_size)[0], self.weight, self.bias)


def _epsilon(base: nn.Module) -> float:
    """The epsilon of a norm, for which the classes of transformers have two names."""
    name = "variance_epsilon" if hasattr(base, "variance_epsilon") else "eps"
    return float(getattr(base, name))


def _parameters(base: nn.Module) -> tuple[nn.Parameter, nn.Parameter | None]:
    """Weight and bias of a Linear or Conv1D."""
    weight, bias = base.weight, base.bias
    assert isinstance(weight, nn.Parameter)
    assert bias is None or isinstance(bias, nn.Parameter)
    return weight, bias


def split_state(x: Tensor, base_size: int) -> tuple[Tensor, Tensor]:
    """Split ``[x ; x']``; the base part is detached and contiguous.

    Contiguous, because the GEMM that a library picks may depend on the strides, and base values
    must not depend on the channel's presence.
    """
    return x[..., :base_size].detach().contiguous(), x[..., base_size:]


def base_projection(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """The arithmetic of nn.Linear, or of transformers' Conv1D (weights ``[in, out]``)."""
    if not transposed:
        return functional.linear(x, weight, bias)
    if bias is None:
        return x @ weight
    out = torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight)
    return out.view(*x.shape[:-1], weight.shape[1])
