"""Signal heads: what the channel's final state predicts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from otter_export.signals import Signal, kind_of

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class ResidualBlock(nn.Module):
    """A block for each of n heads: ``h + SiLU(W h + b)``; zeros leave h as it is."""

    def __init__(self, heads: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, size, size))
        self.bias = nn.Parameter(torch.zeros(heads, size))

    def forward(self, state: Tensor) -> Tensor:
        """``[..., d']`` to ``[..., n, d']``."""
        z = torch.einsum("...d,ned->...ne", state, self.weight) + self.bias
        return state[..., None, :] + functional.silu(z)


class SignalHead(nn.Module):
    """``activation(W n' + b)``, read from the channel after the final norm.

    ``weight`` and ``bias`` have the shapes of the checkpoint format (`SignalKind.weight_shape`).
    Where the signal is ``residual``, each head reads what its block makes of n'.
    """

    def __init__(self, signal: Signal, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        self.kind = kind_of(signal)
        shape = self.kind.weight_shape(signal, hidden_size, vocab_size)
        self.activation = signal.activation
        self.weight = nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.zeros(shape[:-1]))
        self.block = ResidualBlock(signal.heads, hidden_size) if signal.residual else None

    def forward(self, channel: Tensor) -> Tensor:
        """``[B, S, d']`` to the stored head's ``[B, S, *head_dims]`` (`SignalKind.head_dims`)."""
        # Training holds the head in float32 beside bfloat16 states.
        channel = channel.to(self.weight.dtype)
        if self.block is None:
            z = torch.tensordot(channel, self.weight, dims=([-1], [-1]))
        else:
            z = torch.einsum("...nd,nvd->...nv", self.block(channel), self.weight)
        return _ACTIVATIONS[self.activation](z + self.bias)

    def output(self, channel: Tensor) -> Tensor:
        """``[B, S, d']`` to what an engine gives, ``[B, S, *output_dims]``."""
        output: Tensor = self.kind.output(self(channel))
        return output
