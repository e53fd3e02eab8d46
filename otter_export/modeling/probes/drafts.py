"""A ``medusa`` signal: the state from which the base will choose, i places later.

It is regressed on the state of now, and becomes logits by the base's own language model head. R is
the reduced-rank regression (Izenman, 1975), measured in the base's logits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from otter_export.family import BaseDimensions
from otter_export.modeling.data import Batch
from otter_export.modeling.probes.moments import FloatMatrix
from otter_export.modeling.probes.ridge_probe import RidgeProbe
from otter_export.modeling.probes.signal_probe import Float32
from otter_export.signals import Signal


class DraftsProbe(RidgeProbe):
    """Heads for drafts; see `SignalProbe`."""

    objective = "drafts"

    def __init__(self, signal: Signal, dimensions: BaseDimensions, model: Any) -> None:
        needs = f"more than {signal.heads} tokens a text"
        super().__init__(signal, dimensions, model, signal.heads * dimensions.hidden_size, needs)

    def add(self, state: Tensor, batch: Batch, held_out: bool) -> None:
        """See `SignalProbe.add`."""
        n, size = self.signal.heads, state.shape[1]
        if size <= n:
            return
        at = batch.supervised[:, : size - n] & batch.supervised[:, n:]
        later = [state[:, i : size - n + i][at] for i in range(1, n + 1)]
        self.moments[held_out].add(state[:, : size - n][at], torch.cat(later, dim=1))

    def directions(self, most: int) -> FloatMatrix:
        """The directions from which later logits are predicted best.

        ``|W e|^2 = e^T (W^T W) e`` measures an error e of a predicted state in the base's logits.
        """
        xx, xy = self.all.centred(self.all)
        values, vectors = np.linalg.eigh(xx + self.penalty * np.eye(len(xx)))
        whiten = vectors / np.sqrt(values)  # [d, d]; the whitened state is x @ whiten
        cross = (whiten.T @ xy).reshape(len(xx), -1, len(xx))
        wide = self.model.get_output_embeddings().weight.float()
        metric = (wide.T @ wide).double().numpy()
        explained = np.einsum("ani,ij,bnj->ab", cross, metric, cross, optimize=True)
        _, best = np.linalg.eigh(explained)
        return np.ascontiguousarray((whiten @ best[:, ::-1][:, :most]).T)

    def head(self, rows: FloatMatrix) -> tuple[Float32, Float32]:
        """See `SignalProbe.head`."""
        solution, constant = self.regression(rows)
        d = self.dimensions.hidden_size
        embeddings, config = self.model.get_output_embeddings(), self.model.config
        scale = getattr(config, "logit_scale", 1.0) / getattr(config, "logits_scaling", 1.0)
        drafted = slice(self.signal.draft_vocab)  # a fresh checkpoint drafts the first tokens
        output = embeddings.weight[drafted].float().numpy() * np.float32(scale)
        bias = 0.0 if embeddings.bias is None else embeddings.bias[drafted].float().numpy() * scale
        parts = solution.reshape(len(rows), -1, d).astype(np.float32)
        weight = np.stack([output @ parts[:, i].T for i in range(self.signal.heads)])
        means = constant.reshape(-1, d).astype(np.float32)
        return weight, np.stack([output @ mean + bias for mean in means])
