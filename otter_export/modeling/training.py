"""The training loop: the base frozen, the chosen channel tensors learn, every prefix supervised."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt
import torch
from torch import Tensor, nn

from otter_export.checkpoint import Checkpoint
from otter_export.errors import ConfigError
from otter_export.modeling.head_step import HeadStep
from otter_export.modeling.learner import Learner, Task
from otter_export.modeling.other_signals import changes, others_at_stake
from otter_export.modeling.otter_model import OtterModel, load_reference
from otter_export.modeling.train_state import amend_record, load_record, load_state, save_state
from otter_export.modeling.training_config import (
    DTYPES,
    Progress,
    TrainingConfig,
    schedule,
    trainable_names,
)
from otter_export.safetensors_io import LARGEST, rounded
from otter_export.signals import kind_of


class Listener(Protocol):
    """Receives progress; the command line draws a bar from it."""

    def __call__(self, progress: Progress, total_steps: int) -> None:
        """Called after each step and each evaluation."""


class Trainer:
    """One training run over a checkpoint.

    Each step takes a batch of every task, and follows the sum of their weighted losses.

    Args:
        checkpoint: Where the channel's values come from; never written here.
        config: Settings.
        tasks: The signals that learn, each by its objective, from its data.
        watched: Other tasks of the checkpoint, whose held-out items are judged before and after.
        ends: Whether the last token of each response is the end token, which is not text.

    Raises:
        ConfigError: ``trainable`` matches no tensor, or is not a regular expression; a signal comes
            twice; or one wants the channel to stay and another one to move it.
        UnsupportedError: A signal is unknown, or an objective does not train its kind.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: TrainingConfig,
        tasks: Sequence[Task],
        watched: Sequence[Task] = (),
        *,
        ends: bool = True,
    ) -> None:
        for name, some in (("trained", tasks), ("judged besides", watched)):
            _check_once(name, some)
        self.checkpoint, self.config = checkpoint, config
        self.model = load_reference(checkpoint, DTYPES[config.dtype])
        # At the lengths of training texts, CPU flash attention takes twice as long backwards.
        self.model.base.set_attn_implementation("eager")
        self.learners, self.watched = (
            tuple(Learner(task, checkpoint, config, self.model, ends) for task in some)
            for some in (tasks, watched)
        )
        self.signals = tuple(learner.name for learner in self.learners)
        keeps_channel = _keeps_channel(self.learners, config)
        names = trainable_names(checkpoint, config, self.signals, keep_channel=keeps_channel)
        self.parameters = _make_trainable(self.model, names, checkpoint)
        self.head_steps = _head_steps(self.model, checkpoint, self.parameters)
        #: What the optimizer moves, by the name of the tensor that moves with it.
        self.moved = self.parameters | {name: one.step for name, one in self.head_steps.items()}
        self.optimizer = _optimizer(self.moved.values(), config)
        self.steps_per_epoch = max(len(learner.groups(0)) for learner in self.learners)
        # Every epoch groups anew and may differ by a batch; the schedule uses the first's number.
        self.total_steps = self.steps_per_epoch * config.epochs
        if config.max_steps:
            self.total_steps = min(self.total_steps, config.max_steps)
        self.progress = Progress(places=[[0, 0] for _ in self.learners])
        self.best: dict[str, Tensor] = {n: p.detach().clone() for n, p in self.parameters.items()}

    def run(
        self,
        listen: Listener = lambda progress, total_steps: None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Train until done; the best tensors by held-out metric are then in `best`.

        Args:
            listen: Called after each step.
            should_stop: Asked after each step; True saves the state and returns.

        Returns:
            True when the run is finished, False when it was stopped and can be resumed.
        """
        p, started = self.progress, time.monotonic() - self.progress.seconds
        if not p.evaluations:
            p.watched = self.judge_watched()
            self._evaluate()  # what training starts from, which it may fail to better
            self._try_starts()
            p.stale = 0
        while not self._finished():
            loss = self._step()
            p.seconds = time.monotonic() - started
            p.curve.append({"step": p.step, "loss": loss})
            if p.step % self.config.eval_every == 0 or self._finished():
                self._evaluate()
                p.seconds = time.monotonic() - started
                self.save()
            listen(p, self.total_steps)
            if not self._finished() and should_stop():
                self.save()
                return False
        return True

    def _finished(self) -> bool:
        p, c = self.progress, self.config
        out_of_time = 0 < c.max_seconds <= p.seconds
        impatient = 0 < c.patience <= p.stale
        return p.step >= self.total_steps or out_of_time or impatient

    def _step(self) -> float:
        c, p = self.config, self.progress
        rate = c.learning_rate * schedule(self._share_done(), c.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = 0.0
        for learner, place in zip(self.learners, p.places, strict=True):
            batch = learner.batch(place)
            loss += learner.learn(batch, p.step + 1)
            p.tokens += batch.tokens
        for head in self.head_steps.values():
            head.pull()
        torch.nn.utils.clip_grad_norm_(self.moved.values(), c.clip)
        self.optimizer.step()
        for head in self.head_steps.values():
            head.push()
        p.step += 1
        return loss

    def _share_done(self) -> float:
        p, c = self.progress, self.config
        share = (p.step + 1) / max(self.total_steps, 1)
        return max(share, p.seconds / c.max_seconds) if c.max_seconds > 0 else share

    def _evaluate(self) -> float:
        """Judge the held-out items; keep the tensors if they are the best so far.

        The best have the largest sum of the signals' metrics, each by its `Objective.chosen`.

        Returns:
            The sum of the weighted losses.

        Raises:
            ConfigError: One of them is NaN, infinite, or too large for the checkpoint's dtype, as
                too long steps make them.
        """
        p = self.progress
        for name, parameter in self.parameters.items():
            largest, dtype = (
                float(parameter.detach().abs().max()),
                self.checkpoint.tensors[name].dtype,
            )
            if not math.isfinite(largest):
                raise ConfigError(
                    f"the tensor {name} is NaN or infinite after step {p.step}; lower "
                    "--learning-rate"
                )
            if largest > LARGEST[dtype]:
                raise ConfigError(
                    f"the tensor {name} holds {largest:g} after step {p.step}, beyond the range of "
                    f"{dtype} ({LARGEST[dtype]:g}), in which {self.checkpoint.directory} stores "
                    "it; lower --learning-rate, or insert the channel with --dtype F32"
                )
        found = {learner.name: learner.evaluate(learner.sample) for learner in self.learners}
        loss = sum(one.task.weight * float(found[one.name]["loss"]) for one in self.learners)
        p.evaluations.append({"step": p.step, "loss": loss, "signals": found})
        metric = sum(one.chosen(found[one.name]) for one in self.learners)
        if metric > p.best_metric:
            p.best_metric, p.best_step, p.stale = metric, p.step, 0
            self.best = {n: t.detach().clone() for n, t in self.parameters.items()}
        else:
            p.stale += 1
        return loss

    def _try_starts(self) -> None:
        """Begin with what the objectives propose, where its held-out loss is the lower one."""
        loss = self.progress.evaluations[-1]["loss"]
        for learner in self.learners:
            start = {n: t for n, t in learner.start().items() if n in self.parameters}
            if not start:
                continue
            before = {name: self.parameters[name].detach().clone() for name in start}
            _set(self.parameters, start)
            if (found := self._evaluate()) < loss:
                loss = found
            else:
                _set(self.parameters, before)

    def judge_watched(self) -> dict[str, dict[str, Any]]:
        """Loss and metric of what is judged besides, by signal (`Learner.evaluate`)."""
        return {one.name: one.evaluate(one.task.held_out) for one in self.watched}

    @property
    def at_stake(self) -> list[str]:
        """Names of the other signals whose outputs this run changes."""
        return others_at_stake(self.checkpoint, self.signals, list(self.parameters))

    def changes_of_others(self) -> dict[str, dict[str, float]]:
        """How far they are now from what they were (`otter_export.modeling.other_signals`)."""
        items, names = self.learners[0].sample, self.at_stake
        return changes(self.checkpoint, self.model, self.parameters, names, items, self.config)

    @torch.no_grad()
    def use_best(self) -> None:
        """Give the model its best tensors; after the run."""
        _set(self.parameters, self.best)

    def save(self) -> None:
        """Write the state, from which `resume` continues."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"parameter.{name}"] = parameter
            tensors[f"best.{name}"] = self.best[name]
            state = self.optimizer.state.get(self.moved[name], {})
            for key in ("exp_avg", "exp_avg_sq"):
                if key in state:
                    tensors[f"{key}.{name}"] = state[key]
        record = {"fingerprint": self.fingerprint, **dataclasses.asdict(self.progress)}
        if not math.isfinite(self.progress.best_metric):
            record["best_metric"] = None
        save_state(self.checkpoint.directory, tensors, record)

    def note_result(self) -> None:
        """Note in the saved state what the checkpoint is about to hold.

        The tensors are replaced first and the state is removed then; `is_written` tells who was
        killed between the two.
        """
        best = self.best
        result = self._digest(lambda name: stored_bits(self.checkpoint, best, name))
        amend_record(self.checkpoint.directory, {"result": result})

    def is_written(self) -> bool:
        """Whether this run has ended already, and its tensors are those of the checkpoint."""
        return load_record(self.checkpoint.directory).get("result") == self.fingerprint

    @torch.no_grad()
    def resume(self) -> bool:
        """Continue from the checkpoint's saved state, if it has one.

        Raises:
            ConfigError: The state belongs to a run with other settings, data or initial values.
        """
        loaded = load_state(self.checkpoint.directory)
        if loaded is None:
            return False
        tensors, record = loaded
        if record.pop("fingerprint", None) != self.fingerprint:
            raise ConfigError(
                f"{self.checkpoint.directory} holds an unfinished run with other settings or data; "
                "repeat its settings to resume it, or start over with --restart"
            )
        record.pop("tensors")
        record.pop("result", None)
        if record["best_metric"] is None:
            record["best_metric"] = -math.inf
        self.progress = Progress(**record)
        for name, parameter in self.parameters.items():
            parameter.copy_(tensors[f"parameter.{name}"])
            self.best[name] = tensors[f"best.{name}"]
            if f"exp_avg.{name}" in tensors:
                self.optimizer.state[self.moved[name]] = {
                    "step": torch.tensor(float(self.progress.step)),
                    "exp_avg": tensors[f"exp_avg.{name}"],
                    "exp_avg_sq": tensors[f"exp_avg_sq.{name}"],
                }
        return True

    @functools.cached_property
    def fingerprint(self) -> str:
        """Digest of all that the result depends on."""
        return self._digest(self.checkpoint.tensors.raw)

    def _digest(self, bits: Callable[[str], npt.NDArray[Any]]) -> str:
        """Digest of settings, data and the bits of every inserted tensor."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.config)).encode())
        for one in (*self.learners, *self.watched):
            task = one.task
            digest.update(repr((task.signal, task.objective, task.weight)).encode())
            for items in (task.train, task.held_out):
                digest.update(repr([(i.rows, i.score, i.domain) for i in items]).encode())
        for name in self.checkpoint.tensors:
            digest.update(name.encode() + bits(name).tobytes())
        return digest.hexdigest()


def stored_bits(
    checkpoint: Checkpoint, trained: Mapping[str, Tensor], name: str
) -> npt.NDArray[Any]:
    """The bits of an inserted tensor as the trained checkpoint stores them.

    Args:
        checkpoint: Gives the dtype, and the tensors that were not trained.
        trained: Float32 values by name.
        name: Which tensor.
    """
    if name in trained:
        remedy = "insert the channel with --dtype F32"
        return rounded(name, trained[name].numpy(), checkpoint.tensors[name].dtype, remedy)
    return checkpoint.tensors.raw(name)


def _check_once(what: str, tasks: Sequence[Task]) -> None:
    """A signal has one objective and one head.

    Raises:
        ConfigError: One comes twice.
    """
    names = [task.signal for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"signal {twice[0]} is {what} twice; give it once")


def _keeps_channel(learners: Sequence[Learner], config: TrainingConfig) -> bool:
    """Whether an objective wants the channel to stay.

    Raises:
        ConfigError: Another one would move it.
    """
    keep = [learner for learner in learners if learner.objective.keeps_channel]
    if keep and len(keep) < len(learners) and config.freeze != "channel":
        raise ConfigError(
            f"objective {keep[0].task.objective} of signal {keep[0].name} keeps the channel as it "
            "is, and the other signals would train it; give --freeze channel, or train "
            f"{keep[0].name} afterwards"
        )
    return bool(keep)


@torch.no_grad()
def _set(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameters[name].copy_(value)


def _make_trainable(
    model: OtterModel, names: Sequence[str], checkpoint: Checkpoint
) -> dict[str, nn.Parameter]:
    """Freeze all but the named tensors, and hold those in float32 as they are stored."""
    chosen = set(names)
    parameters: dict[str, nn.Parameter] = {}
    for name, parameter in model.channel_parameters():
        parameter.requires_grad_(name in chosen)
        if name in chosen:
            stored = torch.from_numpy(checkpoint.float32(name).copy())
            parameter.data = stored.reshape(parameter.shape)
            parameters[name] = parameter
    return parameters


def _head_steps(
    model: OtterModel, checkpoint: Checkpoint, parameters: Mapping[str, nn.Parameter]
) -> dict[str, HeadStep]:
    """Of the trained heads that have a row for each token, by the name of the weight."""
    return {
        f"signals.{signal.name}.weight": HeadStep.of(model, checkpoint, signal)
        for signal in checkpoint.config.signals
        if f"signals.{signal.name}.weight" in parameters and kind_of(signal).has_token_rows
    }


def _optimizer(parameters: Iterable[nn.Parameter], config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW; norm weights and biases are not pulled towards zero."""
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in parameters:
        groups[parameter.dim() >= 2].append(parameter)
    return torch.optim.AdamW(
        [
            {"params": groups[True], "weight_decay": config.weight_decay},
            {"params": groups[False], "weight_decay": 0.0},
        ],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
    )
