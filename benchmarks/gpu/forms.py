"""The fused projection and what it competes with, on one set of tensors, and their exactness."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from otter_export.plugins.tiles import Widths
from otter_export.plugins.torch_op import linear

Pair = tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True)
class Tensors:
    """One projection's inputs and weights, all of one type; no biases, as in Llama."""

    x: Tensor
    x_channel: Tensor
    weight: Tensor
    from_base: Tensor
    from_channel: Tensor
    stacked: Tensor  # [W; A]


def draw(widths: Widths, rows: int, dtype: torch.dtype, device: str, seed: int = 0) -> Tensors:
    """Normal values; the weights are scaled so that outputs have the size of inputs."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(height: int, width: int, scale: float = 1.0) -> Tensor:
        values = torch.randn(height, width, generator=generator, device=device, dtype=dtype)
        return values.mul_(scale)

    scale, scale_channel = widths.base_in**-0.5, widths.channel_in**-0.5
    stacked = normal(widths.base_out + widths.channel_out, widths.base_in, scale)
    weight, from_base = stacked.split((widths.base_out, widths.channel_out))
    return Tensors(
        x=normal(rows, widths.base_in),
        x_channel=normal(rows, widths.channel_in),
        weight=weight,
        from_base=from_base,
        from_channel=normal(widths.channel_out, widths.channel_in, scale_channel),
        stacked=stacked,
    )


def fused(t: Tensors) -> Pair:
    """One launch of our kernel."""
    return linear(t.x, t.x_channel, t.weight, t.from_base, t.from_channel, None, None)


def two_calls(t: Tensors) -> Pair:
    """``[W; A] x`` and ``B x'`` by cuBLAS, then an addition."""
    y, from_base = functional.linear(t.x, t.stacked).split(
        (t.weight.shape[0], t.from_base.shape[0]), dim=1
    )
    return y, from_base + functional.linear(t.x_channel, t.from_channel)


def three_calls(t: Tensors) -> Pair:
    """``W x``, ``B x'``, then ``A x`` added to it within cuBLAS."""
    y = functional.linear(t.x, t.weight)
    return y, torch.addmm(functional.linear(t.x_channel, t.from_channel), t.x, t.from_base.T)


#: What is timed, the first against the others.
FORMS: dict[str, Callable[[Tensors], Pair]] = {
    "fused": fused,
    "two calls": two_calls,
    "three calls": three_calls,
}


def error(pair: Pair, t: Tensors) -> float:
    """Largest deviation from float64, in units of what a float32 sum rounded once explains."""
    joined = torch.cat((t.x, t.x_channel), 1)
    inserted = torch.cat((t.from_base, t.from_channel), 1)
    return max(_error(pair[0], t.x, t.weight), _error(pair[1], joined, inserted))


def _error(y: Tensor, x: Tensor, weight: Tensor) -> float:
    x, weight = x.double(), weight.double()
    exact = x @ weight.T
    in_sum = 2.0**-24 * (x.shape[1] + 1) * (x.abs() @ weight.T.abs())
    rounding = torch.finfo(y.dtype).eps / 2
    # Half of the smallest subnormal number, where rounding is absolute.
    smallest = torch.finfo(y.dtype).smallest_normal * rounding
    bound = in_sum + rounding * (exact.abs() + in_sum) + smallest
    return float(((y.double() - exact).abs() / bound).max())
