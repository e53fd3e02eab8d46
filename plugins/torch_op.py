"""The fused projection as a PyTorch operator.

Importing this module registers ``otter::linear`` and ``otter::linear_joined``. On CUDA they launch
the Triton kernel, compiled when a shape is first met (so warm up before capturing a CUDA graph);
elsewhere they are plain PyTorch. They have no gradient: they are for inference.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

from otter_export.plugins.tiles import TILES, Widths, choose_tile

#: What the kernel computes in; other types take the plain way.
KERNEL_DTYPES = (torch.float16, torch.bfloat16)


@torch.library.custom_op("otter::linear", mutates_args=())
def linear(
    x: Tensor,
    x_channel: Tensor,
    weight: Tensor,
    from_base: Tensor,
    from_channel: Tensor,
    bias: Tensor | None,
    bias_channel: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """``y = W x + b`` and ``y' = A x + B x' + b'``, summed in float32 and rounded once.

    Args:
        x: ``[.., in]``.
        x_channel: ``[.., in']``, same leading dimensions.
        weight: W ``[out, in]``.
        from_base: A ``[out', in]``.
        from_channel: B ``[out', in']``.
        bias: b ``[out]``, or None.
        bias_channel: b' ``[out']``; None if and only if ``bias`` is.

    Returns:
        y ``[.., out]`` and y' ``[.., out']``, of x's type.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    y_channel = functional.linear(
        torch.cat((x, x_channel), dim=-1).to(wide),
        torch.cat((from_base, from_channel), dim=-1).to(wide),
        None if bias_channel is None else bias_channel.to(wide),
    )
    return functional.linear(x, weight, bias), y_channel.to(x.dtype)


@linear.register_fake
def _(
    x: Tensor,
    x_channel: Tensor,
    weight: Tensor,
    from_base: Tensor,
    from_channel: Tensor,
    bias: Tensor | None,
    bias_channel: Tensor | None,
) -> tuple[Tensor, Tensor]:
    leading = x.shape[:-1]
    return x.new_empty(*leading, weight.shape[0]), x.new_empty(*leading, from_base.shape[0])


@linear.register_kernel("cuda")
def _(
    x: Tensor,
    x_channel: Tensor,
    weight: Tensor,
    from_base: Tensor,
    from_channel: Tensor,
    bias: Tensor | None,
    bias_channel: Tensor | None,
) -> tuple[Tensor, Tensor]:
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    y_channel = x.new_empty(*x.shape[:-1], from_base.shape[0])
    weights, biases = (weight, from_base, from_channel), (bias, bias_channel)
    _launch(_rows(x), _rows(x_channel), weights, biases, _rows(y), _rows(y_channel))
    return y, y_channel


@torch.library.custom_op("otter::linear_joined", mutates_args=())
def linear_joined(
    state: Tensor,
    weight: Tensor,
    from_base: Tensor,
    from_channel: Tensor,
    bias: Tensor | None,
    bias_channel: Tensor | None,
) -> Tensor:
    """`linear` on states that lie in one tensor: ``[.., in + in']`` to ``[.., out + out']``.

    On CUDA nothing is copied: the kernel reads and writes columns of the joined tensors.
    """
    # Contiguous: the GEMM that a library picks may depend on the strides.
    x, x_channel = state[..., : weight.shape[1]].contiguous(), state[..., weight.shape[1] :]
    parts = linear(x, x_channel, weight, from_base, from_channel, bias, bias_channel)
    return torch.cat(parts, dim=-1)


@linear_joined.register_fake
def _(
    state: Tensor,
    weight: Tensor,
    from_base: Tensor,
    from_channel: Tensor,
    bias: Tensor | None,
    bias_channel: Tensor | None,
) -> Tensor:
    return state.new_empty(*state.shape[:-1], weight.shape[0] + from_base.shape[0])


@linear_joined.register_kernel("cuda")
def _(
    state: Tensor,
    weight: Tensor,
    from_base: Tensor,
    from_channel: Tensor,
    bias: Tensor | None,
    bias_channel: Tensor | None,
) -> Tensor:
    out = state.new_empty(*state.shape[:-1], weight.shape[0] + from_base.shape[0])
    x, x_channel = torch.split(_rows(state), [weight.shape[1], from_channel.shape[1]], dim=1)
    y, y_channel = torch.split(_rows(out), [weight.shape[0], from_base.shape[0]], dim=1)
    weights, biases = (weight, from_base, from_channel), (bias, bias_channel)
    _launch(x, x_channel, weights, biases, y, y_channel)
    return out


def _rows(x: Tensor) -> Tensor:
    """``[.., n]`` as ``[rows, n]``, copied only if a row is not dense."""
    return (x if x.stride(-1) == 1 else x.contiguous()).reshape(-1, x.shape[-1])


def _launch(
    x: Tensor,
    x_channel: Tensor,
    weights: tuple[Tensor, Tensor, Tensor],
    biases: tuple[Tensor | None, Tensor | None],
    y: Tensor,
    y_channel: Tensor,
) -> None:
    """Check the types and launch the kernel; all of x, x_channel, y and y_channel are matrices."""
    present = [bias.contiguous() for bias in biases if bias is not None]
    dtypes = {str(tensor.dtype) for tensor in (x, x_channel, *weights, *present)}
    if x.dtype not in KERNEL_DTYPES or len(dtypes) > 1:  # the kernel would misread the bytes
        raise TypeError(
            "the fused projection on CUDA takes tensors of one type, float16 or bfloat16; got "
            f"{', '.join(sorted(dtypes))}"
        )
    if x.shape[0] == 0:
        return
    # Imported late: without a GPU the operators work where Triton is not installed.
    from otter_export.plugins.otter_linear import launch

    widths = Widths(x.shape[1], x_channel.shape[1], y.shape[1], y_channel.shape[1])
    tile = choose_tile(x.shape[0], widths, _multiprocessors(x.device), TILES)
    weight, from_base, from_channel = (tensor.contiguous() for tensor in weights)
    with torch.cuda.device(x.device):  # Triton launches on the current device
        launch(
            tile,
            x,
            x_channel,
            (weight, from_base, from_channel),
            (present[0], present[1]) if len(present) == 2 else None,
            y,
            y_channel,
        )


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)
