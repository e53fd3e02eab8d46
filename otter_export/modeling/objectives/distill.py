"""``distill``: a ``q_value`` signal learns from a trained ``value`` signal of the same channel.

The label of a next token is the value of the prefix that it makes: no labels are needed, any text
will do, and guidance then costs one row a step. A text shows one next token at each position, but
guidance ranks many: so the base's likeliest ones are tried too, and their values are learned.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from otter_export.checkpoint import Checkpoint
from otter_export.errors import UnsupportedError
from otter_export.modeling.alternatives import Alternatives, alternatives
from otter_export.modeling.data import Batch
from otter_export.modeling.objectives.objective import Head, Judged, Objective
from otter_export.modeling.objectives.rewards import pearson, prefix_rewards, response_rewards
from otter_export.modeling.otter_model import OtterModel, OtterOutput
from otter_export.modeling.training_config import TrainingConfig
from otter_export.signals import Signal

#: The metric of alternatives: how they differ at a position, by score and by value.
ALTERNATIVES = "alternatives"


@dataclasses.dataclass(frozen=True)
class Compared(OtterOutput):
    """A pass over texts, and the alternatives that were tried behind it."""

    tried: Alternatives


@dataclasses.dataclass(frozen=True)
class Distill(Objective):
    """Squared error between the score of each next token and the value of what it makes.

    The channel is kept as it is: the labels would move with it, and with them the value.

    Args:
        signal: The ``q_value`` signal that learns.
        teacher: The ``value`` signal.
        count: Alternatives at a position; 0 learns from the texts' own tokens alone.
    """

    signal: Signal
    teacher: Signal
    count: int = 0
    metric: ClassVar[str] = "pearson"
    keeps_channel: ClassVar[bool] = True

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: TrainingConfig, signal: Signal) -> Self:
        """The teacher is the one that the config names, else the checkpoint's first value."""
        values = {s.name: s for s in checkpoint.config.signals if s.kind == "value"}
        if not values:
            raise UnsupportedError(
                f"{checkpoint.directory} has no value signal that {signal.name!r} could learn from"
            )
        name = config.teacher or next(iter(values))
        if name not in values:
            raise UnsupportedError(
                f"--teacher {name!r} is no value signal of {checkpoint.directory}; accepted: "
                f"{', '.join(values)}"
            )
        _check_bounds(signal, values[name])
        return cls(signal, values[name], config.alternatives)

    @property
    def chosen(self) -> str:
        """The alternatives, where there are any: their order is what guidance goes by."""
        return ALTERNATIVES if self.count else "100"

    @property
    def reads(self) -> tuple[str, ...]:
        """See `Objective`."""
        return (self.signal.name, self.teacher.name)

    def forward(self, model: OtterModel, batch: Batch) -> OtterOutput:
        """See `Objective`; with alternatives, it is `Compared`."""
        if not self.count:
            return super().forward(model, batch)
        cache = DynamicCache()
        output = model(batch.ids, compute_signals=self.reads, past_key_values=cache, use_cache=True)
        name = self.teacher.name
        tried = alternatives(model, batch, cache, output.logits, self.count, name)
        return Compared(output.logits, output.signals, output.channel, None, tried)

    def start(self, model: OtterModel) -> dict[str, Tensor]:
        """Each token's score begins as the teacher's value of the text before it.

        A token that training hardly meets then neither gains nor loses, where a drawn head would
        have it gain or lose by chance.
        """
        if self.signal.activation != self.teacher.activation:
            return {}
        head, teacher = model.head(self.signal.name), model.head(self.teacher.name)
        name = f"signals.{self.signal.name}"
        return {
            f"{name}.weight": teacher.weight.detach().expand_as(head.weight),
            f"{name}.bias": teacher.bias.detach().expand_as(head.bias),
        }

    def loss(self, output: OtterOutput, batch: Batch, head: Head) -> Tensor:
        """Mean over the supervised tokens and the alternatives."""
        scores, values = self._pair(output, batch)
        errors = (scores - values)[batch.supervised]
        if isinstance(output, Compared):
            others = self._scores(output) - output.tried.values
            errors = torch.cat((errors, others.flatten()))
        return errors.square().mean()

    def judge(self, output: OtterOutput, batch: Batch, head: Head, ends: bool) -> Judged:
        """Score and value at each share of a row's text, and how alternatives differ by each."""
        scores, values = (prefix_rewards(r, batch, ends) for r in self._pair(output, batch))
        noted = {key: np.stack([scores[key], values[key]], axis=1) for key in scores}
        if isinstance(output, Compared):
            both = torch.stack((self._scores(output), output.tried.values), dim=-1)
            both = both - both.mean(dim=2, keepdim=True)  # of the alternatives at a position
            noted[ALTERNATIVES] = both.reshape(-1, 2).numpy()
        return noted

    def metrics(self, judged: Judged) -> dict[str, float]:
        """Pearson correlation with the value."""
        return {k: pearson(pairs[:, 0], pairs[:, 1]) for k, pairs in judged.items()}

    def _scores(self, output: Compared) -> Tensor:
        """The score of each alternative, ``[R, P, k]``."""
        at, tokens = output.tried.at[:, :, None], output.tried.tokens
        rows = torch.arange(len(at))[:, None, None]
        return output.signals[self.signal.name][rows, at, tokens].float()

    def _pair(self, output: OtterOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """The score and the value of each prefix, ``[R, S]``; the first score is none."""
        values = response_rewards(output, batch.ids, self.teacher).detach()
        return response_rewards(output, batch.ids, self.signal), values


def _check_bounds(signal: Signal, teacher: Signal) -> None:
    """A score that cannot reach the value's range cannot learn it."""
    if signal.bounds is None:
        return
    low, high = teacher.bounds or (-np.inf, np.inf)
    if low < signal.bounds[0] or high > signal.bounds[1]:
        given = "no bounds" if teacher.bounds is None else f"the bounds {list(teacher.bounds)}"
        raise UnsupportedError(
            f"signal {signal.name!r} stays in {list(signal.bounds)}, and its teacher "
            f"{teacher.name!r} has {given}; add a signal with activation identity"
        )
