"""``experts``: offsets to the base's logits learn the language of one class of texts each.

``z + o+`` is a language model of the texts labelled ``expert``, ``z + o-`` of those labelled
``anti`` (DExperts, arXiv 2105.03023, with one base and two heads in place of three models). On
``neutral`` texts both are held to the base, so that their difference is about the labels and not
about the subject.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from otter_export.checkpoint import Checkpoint
from otter_export.modeling.data import LABELS, Batch
from otter_export.modeling.objectives.objective import Head, Judged, Objective
from otter_export.modeling.otter_model import OtterOutput
from otter_export.modeling.training_config import TrainingConfig
from otter_export.signals import Signal

#: The head of each label; those without one are held to the base.
_HEADS = {LABELS["expert"]: 0, LABELS["anti"]: 1}


@dataclasses.dataclass(frozen=True)
class Experts(Objective):
    """Cross-entropy on the text of each class, and a divergence from the base.

    Args:
        signal: An ``expert`` signal.
        neutral: Weight of KL(base, expert) and KL(base, anti-expert) on each token of neutral text,
            their mean.
        labelled: Weight of KL(base, the class's own) on each token of labelled text.
    """

    signal: Signal
    neutral: float = 1.0
    labelled: float = 0.0
    metric: ClassVar[str] = "gain"
    needs_logits: ClassVar[bool] = True

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: TrainingConfig, signal: Signal) -> Self:
        """See `Objective`."""
        return cls(signal, config.neutral_weight, config.labelled_weight)

    @property
    def chosen(self) -> str:
        """See `Objective`."""
        return "all"

    @property
    def reads(self) -> tuple[str, ...]:
        """See `Objective`."""
        return ()

    def loss(self, output: OtterOutput, batch: Batch, head: Head) -> Tensor:
        """Mean over all supervised tokens of what each adds: nats."""
        tokens = self._tokens(output, batch, head)
        adds = tokens.entropy + tokens.weights(self) * tokens.divergence
        return adds.mean()

    def judge(self, output: OtterOutput, batch: Batch, head: Head, ends: bool) -> Judged:
        """For each token its label, what its class gains on the base, and the divergence."""
        tokens = self._tokens(output, batch, head)
        noted = {
            "label": tokens.labels,
            "gain": tokens.base_entropy - tokens.entropy,
            "divergence": tokens.divergence,
        }
        return {key: values.detach().numpy() for key, values in noted.items()}

    def metrics(self, judged: Judged) -> dict[str, float]:
        """Nats a token: what each class gains on the base, the divergence lost, and the sum.

        ``all`` is by how much the loss is less than that of zero offsets.
        """
        label, gain, divergence = (judged[k] for k in ("label", "gain", "divergence"))
        weight = np.where(label == LABELS["neutral"], self.neutral, self.labelled)
        found = {"all": float(np.mean(gain - weight * divergence))}
        for name, value in LABELS.items():
            chosen = label == value
            if chosen.any():
                of = -divergence if name == "neutral" else gain
                found[name] = float(of[chosen].mean())
        return found

    def _tokens(self, output: OtterOutput, batch: Batch, head: Head) -> _Tokens:
        predicted = batch.supervised[:, 1:]
        z = output.logits[:, :-1][predicted].float()
        offsets = head(output.channel[:, :-1][predicted]).float()  # [N, 2, V]
        labels = batch.scores[:, None].expand_as(batch.supervised)[:, 1:][predicted]
        following = batch.ids[:, 1:][predicted]
        base = z.log_softmax(-1)
        entropy, divergence = torch.zeros_like(labels), torch.zeros_like(labels)
        base_entropy = torch.zeros_like(labels)
        for label in LABELS.values():
            rows = (labels == label).nonzero().squeeze(1)
            heads = [_HEADS[label]] if label in _HEADS else [0, 1]
            for one in heads:
                log_p = (z[rows] + offsets[rows, one]).log_softmax(-1)
                kl = (base[rows].exp() * (base[rows] - log_p)).sum(-1)
                divergence = divergence.index_add(0, rows, kl / len(heads))
            if label in _HEADS:
                picked = following[rows, None]
                entropy = entropy.index_add(0, rows, -log_p.gather(1, picked).squeeze(1))
                base_entropy[rows] = -base[rows].gather(1, picked).squeeze(1)
        return _Tokens(labels, entropy, base_entropy, divergence)


@dataclasses.dataclass(frozen=True)
class _Tokens:
    """Of N supervised tokens, float32 ``[N]`` each, in nats; no entropies of neutral ones."""

    labels: Tensor
    entropy: Tensor
    base_entropy: Tensor
    divergence: Tensor

    def weights(self, objective: Experts) -> Tensor:
        """Of the divergence."""
        is_neutral = self.labels == LABELS["neutral"]
        return torch.where(is_neutral, objective.neutral, objective.labelled)
