"""The fused projection as the PyTorch operator ``otter::linear``, and the reference on top of it.

Importing this module registers the operator: on CUDA the Triton kernel, compiled when a shape is
first met (so warm up before capturing a CUDA graph), elsewhere plain PyTorch. It has no gradient:
it is for inference.
"""

from __future__ import annotations

import functools
import importlib.util

import torch
from torch import Tensor, nn
from torch.nn import functional

from otter_export.errors import MissingDependencyError
from otter_export.modeling.layers import WidenedProjection, split_state
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
    # Imported late: without a GPU the operator works where Triton is not installed.
    from otter_export.plugins.otter_linear import launch

    given = (x, x_channel, weight, from_base, from_channel, bias, bias_channel)
    dtypes = {str(tensor.dtype) for tensor in given if tensor is not None}
    if x.dtype not in KERNEL_DTYPES or len(dtypes) > 1:  # the kernel would misread the bytes
        raise TypeError(
            f"otter::linear on CUDA takes tensors of one type, float16 or bfloat16; got "
            f"{', '.join(sorted(dtypes))}"
        )
    leading = x.shape[:-1]
    rows, rows_channel = x.reshape(-1, x.shape[-1]), x_channel.reshape(-1, x_channel.shape[-1])
    y = x.new_empty(rows.shape[0], weight.shape[0])
    y_channel = x.new_empty(rows.shape[0], from_base.shape[0])
    if rows.shape[0] > 0:
        widths = Widths(rows.shape[1], rows_channel.shape[1], y.shape[1], y_channel.shape[1])
        tile = choose_tile(rows.shape[0], widths, _multiprocessors(x.device), TILES)
        biases = None
        if bias is not None and bias_channel is not None:
            biases = (bias.contiguous(), bias_channel.contiguous())
        weights = (weight.contiguous(), from_base.contiguous(), from_channel.contiguous())
        with torch.cuda.device(x.device):  # Triton launches on the current device
            launch(
                tile, rows.contiguous(), rows_channel.contiguous(), weights, biases, y, y_channel
            )
    return y.view(*leading, y.shape[1]), y_channel.view(*leading, y_channel.shape[1])


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


class FusedProjection(WidenedProjection):
    """A `WidenedProjection` that computes both streams by ``otter::linear``.

    Same parameters and names. With gradients on, or in types that the kernel does not have, it
    computes as its base class does.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[..., n_in + n'_in]`` to ``[..., n_out + n'_out]``."""
        is_of_one_type = x.dtype == self.weight.dtype == self.otter.from_base.dtype
        if torch.is_grad_enabled() or x.dtype not in KERNEL_DTYPES or not is_of_one_type:
            return super().forward(x)
        base, channel = split_state(x, self.widths.base_in)
        inserted = (self.otter.from_base, self.otter.from_channel, self.bias, self.otter.bias)
        return torch.cat(linear(base, channel, self.weight, *inserted), dim=-1)


def use_fused_projections(model: nn.Module) -> int:
    """Let every projection of the torch reference that can be fused use ``otter::linear``.

    Those are the ones with weights ``[out, in]`` (nn.Linear). GPT-2's Conv1D keeps its weights
    transposed and stays as it is.

    Args:
        model: For example `otter_export.modeling.otter_model.OtterModel`; changed in place.

    Returns:
        How many projections were changed.

    Raises:
        MissingDependencyError: The model is on a GPU and Triton is not installed.
    """
    on_gpu = any(parameter.is_cuda for parameter in model.parameters())
    if on_gpu and importlib.util.find_spec("triton") is None:
        raise MissingDependencyError("triton", "trt", "the fused projection")
    plain = [m for m in model.modules() if type(m) is WidenedProjection and not m.transposed]
    for module in plain:
        module.__class__ = FusedProjection
    return len(plain)
