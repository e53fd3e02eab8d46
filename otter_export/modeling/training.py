"""The training loop: the base frozen, the chosen channel tensors learn, every prefix supervised."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from otter_export.boundary import errors_as
from otter_export.checkpoint import Checkpoint
from otter_export.errors import CheckpointError, ConfigError
from otter_export.modeling.data import Batch, Item, batches, collate, epoch_groups
from otter_export.modeling.objectives import objective_for
from otter_export.modeling.objectives.objective import Judged, joined
from otter_export.modeling.other_signals import changes, others_at_stake
from otter_export.modeling.otter_model import OtterModel, OtterOutput, load_reference
from otter_export.modeling.train_state import amend_record, load_record, load_state, save_state
from otter_export.modeling.training_config import (
    DTYPES,
    Progress,
    TrainingConfig,
    schedule,
    signal_named,
    trainable_names,
)
from otter_export.safetensors_io import LARGEST, rounded


class Listener(Protocol):
    """Receives progress; the command line draws a bar from it."""

    def __call__(self, progress: Progress, total_steps: int) -> None:
        """Called after each step and each evaluation."""


class Trainer:
    """One training run over a checkpoint.

    Args:
        checkpoint: Where the channel's values come from; never written here.
        config: Settings.
        train, held_out: Items of `otter_export.modeling.data.Reader`.

    Raises:
        ConfigError: ``trainable`` matches no tensor, or is not a regular expression.
        UnsupportedError: The signal is unknown, or the objective does not train its kind.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: TrainingConfig,
        train: Sequence[Item],
        held_out: Sequence[Item],
        *,
        ends: bool = True,
    ) -> None:
        self.checkpoint, self.config = checkpoint, config
        self.train, self.held_out, self.ends = train, held_out, ends
        self.signal = signal_named(checkpoint, config.signal)
        self.objective = objective_for(checkpoint, config, self.signal)
        names = trainable_names(checkpoint, config, keep_channel=self.objective.keeps_channel)
        _check_ids(checkpoint, [*train, *held_out])
        self.model = load_reference(checkpoint, DTYPES[config.dtype])
        # At the lengths of training texts, CPU flash attention takes twice as long backwards.
        self.model.base.set_attn_implementation("eager")
        self._head = self.model.head(self.signal.name)
        self.parameters = _make_trainable(self.model, names, checkpoint)
        self.optimizer = _optimizer(self.parameters.values(), config)
        self.steps_per_epoch = len(self._epoch(0))
        # Every epoch groups anew and may differ by a batch; the schedule uses the first's number.
        self.total_steps = self.steps_per_epoch * config.epochs
        if config.max_steps:
            self.total_steps = min(self.total_steps, config.max_steps)
        order = np.random.default_rng([config.seed, 2]).permutation(len(held_out))
        self.sample = [held_out[i] for i in order[: config.eval_items]]
        self.progress = Progress()
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
            self._evaluate()  # what training starts from, which it may fail to better
            p.stale = 0
        while not self._finished():
            for batch in self._remaining_batches():
                loss = self._step(batch)
                p.seconds = time.monotonic() - started
                p.curve.append({"step": p.step, "loss": loss})
                if p.step % self.config.eval_every == 0 or self._finished():
                    self._evaluate()
                    p.seconds = time.monotonic() - started
                    self.save()
                listen(p, self.total_steps)
                if self._finished():
                    break
                if should_stop():
                    self.save()
                    return False
            else:
                p.epoch, p.batch = p.epoch + 1, 0
        return True

    def _finished(self) -> bool:
        p, c = self.progress, self.config
        out_of_time = 0 < c.max_seconds <= p.seconds
        impatient = 0 < c.patience <= p.stale
        return p.step >= self.total_steps or out_of_time or impatient

    def _epoch(self, epoch: int) -> list[list[Item]]:
        c = self.config
        return epoch_groups(self.train, c.batch_tokens, c.seed, epoch)

    def _remaining_batches(self) -> Iterator[Batch]:
        groups = self._epoch(self.progress.epoch)
        for i in range(self.progress.batch, len(groups)):
            self.progress.batch = i + 1
            yield collate(groups[i])

    def _step(self, batch: Batch) -> float:
        c, p = self.config, self.progress
        rate = c.learning_rate * schedule(self._share_done(), c.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective.loss(self._forward(batch), batch, self._head)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise ConfigError(
                f"the loss is {value} at step {p.step + 1}; lower --learning-rate or use "
                "--dtype float32"
            )
        with self._in_torch():
            loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), c.clip)
        self.optimizer.step()
        p.step += 1
        p.tokens += batch.tokens
        return value

    def _in_torch(self) -> contextlib.AbstractContextManager[None]:
        """Whatever torch raises is an error of the checkpoint, in one line."""
        what = f"{self.checkpoint.directory}: the model failed in torch"
        return errors_as(CheckpointError, what)

    def _share_done(self) -> float:
        p, c = self.progress, self.config
        share = (p.step + 1) / max(self.total_steps, 1)
        return max(share, p.seconds / c.max_seconds) if c.max_seconds > 0 else share

    def _forward(self, batch: Batch) -> OtterOutput:
        mixed = self.config.dtype != "float32"
        context = torch.autocast("cpu", torch.bfloat16) if mixed else contextlib.nullcontext()
        with self._in_torch(), context:
            output: OtterOutput = self.model(
                batch.ids,
                compute_logits=self.objective.needs_logits,
                compute_signals=self.objective.reads,
                use_cache=False,
            )
        return output

    def _evaluate(self) -> None:
        """Judge the held-out items; keep the tensors if they are the best so far.

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
        metrics = self.evaluate(self.sample)
        p.evaluations.append({"step": p.step, **metrics})
        chosen = metrics[self.objective.metric][self.objective.chosen]
        if chosen > p.best_metric:
            p.best_metric, p.best_step, p.stale = chosen, p.step, 0
            self.best = {n: t.detach().clone() for n, t in self.parameters.items()}
        else:
            p.stale += 1

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
        for batch in batches(items, self.config.batch_tokens):
            output = self._forward(batch)
            total += float(self.objective.loss(output, batch, self._head)) * batch.tokens
            count += batch.tokens
            parts.append(self.objective.judge(output, batch, self._head, self.ends))
            listen(len(batch.ids) // len(items[0].rows))
        return total / count, joined(parts)

    @property
    def at_stake(self) -> list[str]:
        """Names of the other signals whose outputs this run changes."""
        return others_at_stake(self.checkpoint, self.signal.name, list(self.parameters))

    def changes_of_others(self) -> dict[str, dict[str, float]]:
        """How far they are now from what they were (`otter_export.modeling.other_signals`)."""
        items, tokens = self.sample, self.config.batch_tokens
        names = self.at_stake
        return changes(self.checkpoint, self.model, self.parameters, names, items, tokens)

    @torch.no_grad()
    def use_best(self) -> None:
        """Give the model its best tensors; after the run."""
        for name, parameter in self.parameters.items():
            parameter.copy_(self.best[name])

    def save(self) -> None:
        """Write the state, from which `resume` continues."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            tensors[f"parameter.{name}"] = parameter
            tensors[f"best.{name}"] = self.best[name]
            state = self.optimizer.state.get(parameter, {})
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
                self.optimizer.state[parameter] = {
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
        for items in (self.train, self.held_out):
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
