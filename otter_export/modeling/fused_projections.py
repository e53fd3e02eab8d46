"""The torch reference on the fused projection's operator, for inference."""

from __future__ import annotations

import importlib.util

import torch
from torch import Tensor, nn

from otter_export.errors import MissingDependencyError
from otter_export.modeling.layers import WidenedProjection
from otter_export.plugins.torch_op import KERNEL_DTYPES, linear_joined


class FusedProjection(WidenedProjection):
    """A `WidenedProjection` that computes both streams by ``otter::linear_joined``.

    Same parameters and names. With gradients on, or in types that the kernel does not have, it
    computes as its base class does.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``[..., n_in + n'_in]`` to ``[..., n_out + n'_out]``."""
        is_of_one_type = x.dtype == self.weight.dtype == self.otter.from_base.dtype
        if torch.is_grad_enabled() or x.dtype not in KERNEL_DTYPES or not is_of_one_type:
            return super().forward(x)
        inserted = self.otter
        out: Tensor = linear_joined(
            *(x, self.weight, inserted.from_base, inserted.from_channel, self.bias, inserted.bias)
        )
        return out


def use_fused_projections(model: nn.Module) -> int:
    """Let every projection of the torch reference that can be fused use ``otter::linear_joined``.

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
