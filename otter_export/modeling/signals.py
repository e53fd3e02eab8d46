"""Signal heads: what the channel's final state predicts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from otter_export.config import Signal

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


class SignalHead(nn.Module):
    """``activation(W n' + b)``, read from the channel after the final norm.

    ``weight`` and ``bias`` have the shapes of the checkpoint format (`Signal.weight_shape`).
    """

    def __init__(self, signal: Signal, hidden_size: int, vocab_size: int) -> None:
        super().__init__()
        shape = signal.weight_shape(hidden_size, vocab_size)
        self.kind = signal.kind
        self.activation = signal.activation
        self.weight = nn.Parameter(torch.zeros(shape))
        self.bias = nn.Parameter(torch.zeros(shape[:-1]))

    def forward(self, channel: Tensor) -> Tensor:
        """``[B, S, d']`` to ``[B, S]`` (value), ``[B, S, V]`` (q_value) or ``[B, S, heads, V]``."""
        # Training holds the head in float32 beside bfloat16 states.
        channel = channel.to(self.weight.dtype)
        z = torch.tensordot(channel, self.weight, dims=([-1], [-1])) + self.bias
        if self.kind == "value":
            z = z.squeeze(-1)
        return _ACTIVATIONS[self.activation](z)
