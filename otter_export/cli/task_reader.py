"""`TaskReader`: from options that name signals and files to the tasks of a training run."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

from otter_export.checkpoint import Checkpoint
from otter_export.cli.task_option import TaskOption
from otter_export.modeling.data import Reader, Tokenizer, split
from otter_export.modeling.learner import Task
from otter_export.modeling.objectives import check_objective
from otter_export.modeling.tokenization import end_token_id, load_tokenizer
from otter_export.modeling.training_config import signal_named
from otter_export.signals import kind_of


@dataclasses.dataclass(frozen=True)
class TaskReader:
    """Reads data for any signal of a checkpoint.

    Args:
        checkpoint: Whose tokenizer, positions and signals.
        score_scale: Scores are divided by it.
        longest: Longer texts are cut.
    """

    checkpoint: Checkpoint
    score_scale: float
    longest: int

    @property
    def max_tokens(self) -> int:
        """As the base has positions."""
        return min(self.longest, self.checkpoint.base.dimensions.max_position_embeddings)

    @functools.cached_property
    def end_id(self) -> int | None:
        """Comes behind every response, if the base has such a token."""
        return end_token_id(self.checkpoint.base)

    def learned(
        self, option: TaskOption, eval_data: Path | None, fraction: float, seed: int
    ) -> Task:
        """A signal that learns from an option's file.

        Args:
            option: Signal, objective, file and weight.
            eval_data: What it is judged by; None: a share of the file.
            fraction: That share.
            seed: Chooses it.

        Raises:
            ConfigError: A file cannot be read.
            UnsupportedError: The signal is unknown, or the objective does not train its kind.
        """
        reader = self.reader(option)
        items = reader.read(option.file)
        if eval_data is None:
            items, held_out = split(items, fraction, seed)
        else:
            held_out = reader.read(eval_data)
        return Task(reader.signal.name, reader.objective, items, held_out, option.weight)

    def judged(self, option: TaskOption) -> Task:
        """A signal that is judged by an option's file; errors as `learned`."""
        reader = self.reader(option)
        return Task(reader.signal.name, reader.objective, (), reader.read(option.file))

    def reader(self, option: TaskOption) -> Reader:
        """What reads files for an option; errors as `learned`."""
        name = option.signal or self.checkpoint.config.signals[0].name
        signal = signal_named(self.checkpoint, name)
        objective = option.objective or kind_of(signal).objectives[0]
        check_objective(objective, signal)
        limits = (self.end_id, self.score_scale, self.max_tokens)
        return Reader(objective, signal, self._tokenizer, *limits)

    @functools.cached_property
    def _tokenizer(self) -> Tokenizer:
        return load_tokenizer(self.checkpoint.base.directory)
