"""`HeadStep`: a head with a row for each token learns through the base's own rows of those tokens.

A step of 512 tokens meets 1 % of a vocabulary, so a row of such a head seldom learns. The base's
output embedding says which tokens are alike: the head moves by ``W U`` alone, with W the base's
rows ``[V', d]`` and U ``[d, d']`` for each part of the head. What one token teaches, those like it
learn too, and U has a hundredth of the head's values. The stored head stays a plain matrix.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor, nn

from otter_export.checkpoint import Checkpoint
from otter_export.modeling.otter_model import OtterModel
from otter_export.signals import Signal


@dataclasses.dataclass(frozen=True)
class HeadStep:
    """What the optimizer moves in place of a head's weight.

    Args:
        weight: ``[..., V', d']``, which the model reads.
        rows: ``[V', d]`` float32: of the base's output embedding.
        step: ``[..., d, d']``: U; 0 between steps, so that all that is ever kept is the weight.
    """

    weight: nn.Parameter
    rows: Tensor
    step: nn.Parameter

    @classmethod
    def of(cls, model: OtterModel, checkpoint: Checkpoint, signal: Signal) -> HeadStep:
        """Of the head of a signal that has a row for each token (`SignalKind.has_token_rows`)."""
        weight = model.head(signal.name).weight
        rows = model.base.get_output_embeddings().weight.detach().float()
        ids = checkpoint.token_ids(signal)
        if ids is not None:
            rows = rows[torch.from_numpy(ids.astype(np.int64))]
        step = weight.new_zeros((*weight.shape[:-2], rows.shape[1], weight.shape[-1]))
        return cls(weight, rows, nn.Parameter(step))

    def pull(self) -> None:
        """Take the gradient of the weight over."""
        grad, self.weight.grad = self.weight.grad, None
        self.step.grad = None if grad is None else self.rows.T @ grad

    @torch.no_grad()
    def push(self) -> None:
        """Move the weight by what the optimizer has made of the step."""
        self.weight.add_(self.rows @ self.step)
        self.step.zero_()
