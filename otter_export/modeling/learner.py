"""`Learner`: one signal of a model that is trained or judged: its batches, its loss, its metric."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from otter_export.arguments import number
from otter_export.boundary import errors_as
from otter_export.checkpoint import Checkpoint
from otter_export.errors import CheckpointError, ConfigError
from otter_export.modeling.data import Batch, Item, batches, collate, epoch_groups
from otter_export.modeling.objectives import objective_for
from otter_export.modeling.objectives.objective import Judged, joined
from otter_export.modeling.otter_model import OtterModel, OtterOutput
from otter_export.modeling.training_config import TrainingConfig, arithmetic, signal_named


@dataclasses.dataclass(frozen=True)
class Task:
    """What one signal learns, and from what.

    Args:
        signal: Its name.
        objective: Its name (`otter_export.modeling.objectives.OBJECTIVES`).
        train: Items of `otter_export.modeling.data.Reader`; a task that is only judged has none.
        held_out: Those that it is judged by.
        weight: Of its loss, where several signals are trained together.

    Raises:
        ConfigError: The weight is no number above 0.
    """

    signal: str
    objective: str
    train: Sequence[Item]
    held_out: Sequence[Item]
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check the weight; names are compared with the checkpoint's later."""
        number("weight", self.weight, above=0, error=ConfigError)


class Learner:
    """A task over a model.

    Args:
        task: What is learned.
        checkpoint: Of the model.
        config: Settings of the run.
        model: Runs the batches.
        ends: Whether the last token of each response is the end token, which is not text.

    Raises:
        ConfigError: An item has a token that the embedding has no row for.
        UnsupportedError: The signal is unknown, or the objective does not train its kind.
    """

    def __init__(
        self,
        task: Task,
        checkpoint: Checkpoint,
        config: TrainingConfig,
        model: OtterModel,
        ends: bool,
    ) -> None:
        self.task, self.signal = task, signal_named(checkpoint, task.signal)
        self.objective = objective_for(task.objective, checkpoint, config, self.signal)
        _check_ids(checkpoint, [*task.train, *task.held_out])
        self._directory, self._config = checkpoint.directory, config
        self._model, self._head, self._ends = model, model.head(task.signal), ends
        self._epoch: tuple[int, list[list[Item]]] = (-1, [])
        order = np.random.default_rng([config.seed, 2]).permutation(len(task.held_out))
        self.sample = [task.held_out[i] for i in order[: config.eval_items]]

    @property
    def name(self) -> str:
        """Of the signal."""
        return self.signal.name

    def groups(self, epoch: int) -> list[list[Item]]:
        """The items of each batch of an epoch."""
        if self._epoch[0] != epoch:
            groups = epoch_groups(
                self.task.train, self._config.batch_tokens, self._config.seed, epoch
            )
            self._epoch = (epoch, groups)
        return self._epoch[1]

    def batch(self, place: list[int]) -> Batch:
        """The next batch; its epochs follow one another.

        Args:
            place: The epoch, and how many of its batches were taken; moved on.
        """
        if place[1] == len(self.groups(place[0])):
            place[:] = [place[0] + 1, 0]
        place[1] += 1
        return collate(self.groups(place[0])[place[1] - 1])

    def learn(self, batch: Batch, step: int) -> float:
        """Add the gradients of the weighted loss to those that are there; returns that loss.

        Raises:
            ConfigError: The loss is no number.
        """
        loss = self.task.weight * self.objective.loss(self._forward(batch), batch, self._head)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ConfigError(
                f"the loss of {self.name} is {value} at step {step}; lower --learning-rate or use "
                "--dtype float32"
            )
        with self._in_torch():
            loss.backward()  # type: ignore[no-untyped-call]
        return value

    def evaluate(
        self, items: Sequence[Item], listen: Callable[[int], None] = lambda items: None
    ) -> dict[str, Any]:
        """Loss and metric of items: ``{"loss": x, METRIC: {"25": x, ...}}`` (`Objective.metrics`).

        Args:
            items: What to judge.
            listen: Called with the number of items just judged.
        """
        loss, judged = self.judge(items, listen)
        return {"loss": loss, self.objective.metric: self.objective.metrics(judged)}

    @torch.no_grad()
    def judge(
        self, items: Sequence[Item], listen: Callable[[int], None] = lambda items: None
    ) -> tuple[float, Judged]:
        """Mean loss, and what the metric is made of; arguments as `evaluate`.

        Rows come in an order that depends on the items' lengths alone.
        """
        total, count = 0.0, 0
        parts: list[Judged] = []
        for batch in batches(items, self._config.batch_tokens):
            output = self._forward(batch)
            total += float(self.objective.loss(output, batch, self._head)) * batch.tokens
            count += batch.tokens
            parts.append(self.objective.judge(output, batch, self._head, self._ends))
            listen(len(batch.ids) // len(items[0].rows))
        return total / count, joined(parts)

    def chosen(self, result: dict[str, Any]) -> float:
        """The figure of `evaluate` by which the best step is chosen."""
        return float(result[self.objective.metric][self.objective.chosen])

    def start(self) -> dict[str, Tensor]:
        """A start for its head that may be better than what it has, by tensor name."""
        return self.objective.start(self._model)

    def _forward(self, batch: Batch) -> OtterOutput:
        with self._in_torch(), arithmetic(self._config.dtype):
            return self.objective.forward(self._model, batch)

    def _in_torch(self) -> contextlib.AbstractContextManager[None]:
        """Whatever torch raises is an error of the checkpoint, in one line."""
        return errors_as(CheckpointError, f"{self._directory}: the model failed in torch")


def _check_ids(checkpoint: Checkpoint, items: Iterable[Item]) -> None:
    """Every token needs its row of the embedding; torch only says that some index is wrong.

    Raises:
        ConfigError: One has none, and on which line.
    """
    size = checkpoint.base.dimensions.vocab_size
    for item in items:
        largest = max(max(row.ids) for row in item.rows)
        if largest >= size:
            raise ConfigError(
                f"line {item.line} of the data has token id {largest}, and the embedding of "
                f"{checkpoint.base.directory} has {size} rows: its tokenizer and its weights do "
                "not belong together"
            )
