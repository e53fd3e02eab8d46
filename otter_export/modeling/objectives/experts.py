"""``experts``: offsets to the base's logits learn the language of one class of texts each.

``z + o+`` is a language model of the texts labelled ``expert``, ``z + o-`` of those labelled
``anti`` (DExperts, arXiv 2105.03023, with one base and two heads in place of three models). On
``neutral`` texts both are held to the base, so that their difference is about the labels and not
about the subject. Both can also be taught to tell the classes apart by the likelihoods that they
give to a text, as a generative discriminator (GeDi, arXiv 2009.06367): the two then differ on what
matters to the label, and less on what both classes have in common.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from otter_export.checkpoint import Checkpoint
from otter_export.modeling.data import LABELS, Batch
from otter_export.modeling.objectives.objective import Head, Judged, Objective
from otter_export.modeling.otter_model import OtterOutput
from otter_export.modeling.training_config import TrainingConfig
from otter_export.signals import Signal

#: The head of each label; those without one are held to the base.
_HEADS = {LABELS["expert"]: 0, LABELS["anti"]: 1}
#: From the mean of a text's log likelihood ratios, in nats a token, to log odds of its class.
_ODDS = 10.0


@dataclasses.dataclass(frozen=True)
class Experts(Objective):
    """Cross-entropy on the text of each class, and a divergence from the base.

    Args:
        signal: An ``expert`` signal.
        neutral: Weight of KL(base, expert) and KL(base, anti-expert) on each token of neutral text,
            their mean.
        labelled: Weight of KL(base, the class's own) on each token of labelled text.
        discriminative: Weight of telling the class of a labelled text, on each of its tokens.
    """

    signal: Signal
    neutral: float = 1.0
    labelled: float = 0.0
    discriminative: float = 0.0
    metric: ClassVar[str] = "gain"
    needs_logits: ClassVar[bool] = True

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: TrainingConfig, signal: Signal) -> Self:
        """See `Objective`."""
        weights = config.neutral_weight, config.labelled_weight, config.discriminative_weight
        return cls(signal, *weights)

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
        return (adds + self.discriminative * tokens.doubt).mean()

    def judge(self, output: OtterOutput, batch: Batch, head: Head, ends: bool) -> Judged:
        """For each token its label, what its class gains on the base, divergence and doubt."""
        tokens = self._tokens(output, batch, head)
        noted = {
            "label": tokens.labels,
            "gain": tokens.base_entropy - tokens.entropy,
            "divergence": tokens.divergence,
            "doubt": tokens.doubt,
        }
        return {key: values.detach().numpy() for key, values in noted.items()}

    def metrics(self, judged: Judged) -> dict[str, float]:
        """Nats a token: what each class gains on the base, the divergence lost, and the sum.

        ``all`` is by how much the loss is less than that of zero offsets. ``class``: by how much a
        text's class is less in doubt than by chance, where that is learned.
        """
        label, gain, divergence = (judged[k] for k in ("label", "gain", "divergence"))
        weight = np.where(label == LABELS["neutral"], self.neutral, self.labelled)
        told = np.where(label == LABELS["neutral"], 0.0, math.log(2) - judged["doubt"])
        found = {"all": float(np.mean(gain - weight * divergence + self.discriminative * told))}
        if self.discriminative and (label != LABELS["neutral"]).any():
            found["class"] = float(told[label != LABELS["neutral"]].mean())
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
        zero = torch.zeros_like(labels)
        found = _Tokens(labels, zero, zero.clone(), zero, zero)
        ratio = zero
        for label in LABELS.values():
            rows = (labels == label).nonzero().squeeze(1)
            own = [_HEADS[label]] if label in _HEADS else [0, 1]
            others = {0, 1}.difference(own) if self.discriminative else ()
            for one in (*own, *others):
                log_p = (z[rows] + offsets[rows, one]).log_softmax(-1)
                likelihood = log_p.gather(1, following[rows, None]).squeeze(1)
                if label in _HEADS:
                    ratio = ratio.index_add(0, rows, likelihood if one == 0 else -likelihood)
                if one in others:
                    continue
                kl = (base[rows].exp() * (base[rows] - log_p)).sum(-1) / len(own)
                found.divergence = found.divergence.index_add(0, rows, kl)
                if label in _HEADS:
                    found.entropy = found.entropy.index_add(0, rows, -likelihood)
                    picked = base[rows].gather(1, following[rows, None])
                    found.base_entropy[rows] = -picked.squeeze(1)
        if self.discriminative:
            found.doubt = _doubt(ratio, labels, predicted)
        return found


def _doubt(ratio: Tensor, labels: Tensor, predicted: Tensor) -> Tensor:
    """Cross-entropy of the class of each token's text ``[N]``; 0 for neutral text.

    Args:
        ratio: ``[N]``: by how much the expert finds each token likelier than the anti-expert does.
        labels: ``[N]``: of each token's text.
        predicted: ``[R, S]``: which places of which texts the tokens are.
    """
    text = predicted.nonzero(as_tuple=True)[0]
    lengths = predicted.sum(1).clamp(min=1)
    means = ratio.new_zeros(len(predicted)).index_add(0, text, ratio) / lengths
    odds = _ODDS * means[text]
    is_expert = (labels == LABELS["expert"]).float()
    found = functional.binary_cross_entropy_with_logits(odds, is_expert, reduction="none")
    return torch.where(labels == LABELS["neutral"], torch.zeros_like(found), found)


@dataclasses.dataclass
class _Tokens:
    """Of N supervised tokens, float32 ``[N]`` each, in nats; no entropies of neutral ones.

    ``doubt`` is the cross-entropy of the class of a token's text, and 0 where it is not learned.
    """

    labels: Tensor
    entropy: Tensor
    base_entropy: Tensor
    divergence: Tensor
    doubt: Tensor

    def weights(self, objective: Experts) -> Tensor:
        """Of the divergence."""
        is_neutral = self.labels == LABELS["neutral"]
        return torch.where(is_neutral, objective.neutral, objective.labelled)
