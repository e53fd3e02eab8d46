"""Settings of a training run, what it has done so far, and which tensors of a checkpoint learn."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
from collections.abc import Collection
from typing import Any

import torch

from otter_export.arguments import integer, keep, number
from otter_export.checkpoint import Checkpoint
from otter_export.errors import ConfigError, UnsupportedError
from otter_export.quoting import quoted
from otter_export.signals import Signal

#: The smallest value of each integer of `TrainingConfig`.
_LEAST = {"epochs": 1, "max_steps": 0, "batch_tokens": 1, "eval_every": 1, "eval_items": 1}
_LEAST |= {"patience": 0, "seed": 0, "alternatives": 0}
#: The range of each number.
_RANGES: dict[str, dict[str, float]] = {
    "learning_rate": {"above": 0},
    "weight_decay": {"minimum": 0},
    "warmup": {"minimum": 0, "maximum": 0.99},
    "clip": {"above": 0},
    "neutral_weight": {"minimum": 0},
    "labelled_weight": {"minimum": 0},
    "discriminative_weight": {"minimum": 0},
    "max_seconds": {"minimum": 0},
}
FREEZES = ("nothing", "channel")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
#: Stands for the faster of them on this processor.
AUTO = "auto"


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """Settings of one run; everything that its result depends on, besides data and checkpoint.

    Args:
        trainable: Regular expression; inserted tensors whose name it matches (anywhere) learn.
        freeze: ``channel``: heads alone learn, so that signals that do not keep their values.
        teacher: Of ``distill``: the value signal to learn from; None takes the first.
        alternatives: Of ``distill``: how many of the base's likeliest next tokens are scored too,
            besides the text's own, at one position in eight.
        neutral_weight, labelled_weight: Of ``experts``: what a nat away from the base costs.
        discriminative_weight: Of ``experts``: what a nat of doubt about a text's class costs.
        epochs: Passes over the training items.
        max_steps: The schedule ends after so many steps; 0 for no limit.
        batch_tokens: Tokens per step, padding included.
        learning_rate: Peak, reached after ``warmup`` (share of the run), then a cosine to zero.
        weight_decay, clip: Of AdamW; largest norm of the gradient.
        eval_every: Steps between evaluations, each of which saves the state.
        eval_items: At most so many held-out items are judged then; all of them at the end.
        patience: Evaluations without a better metric before the run stops; 0 never stops early.
        dtype: Of the frozen tensors and the matrix products; what learns is kept in float32.
            ``auto`` becomes the faster one on this processor.
        seed: Of the order of the items.
        max_seconds: The schedule is shortened so that the run ends in this time; 0 for no limit.
            Only a run without this limit resumes to exactly the same result.

    Raises:
        ConfigError: A value is of another type, or out of range.
    """

    trainable: str = "."
    freeze: str = "nothing"
    teacher: str | None = None
    alternatives: int = 16
    neutral_weight: float = 1.0
    labelled_weight: float = 0.0
    discriminative_weight: float = 0.0
    epochs: int = 3
    max_steps: int = 0
    batch_tokens: int = 1024
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip: float = 1.0
    eval_every: int = 50
    eval_items: int = 256
    patience: int = 0
    dtype: str = "float32"
    seed: int = 0
    max_seconds: float = 0.0

    def __post_init__(self) -> None:
        """Check the types and ranges; names are compared with the checkpoint's later."""
        for name, least in _LEAST.items():
            value = integer(name, getattr(self, name), least=least, error=ConfigError)
            keep(self, **{name: value})
        for name, limits in _RANGES.items():
            found = number(name, getattr(self, name), **limits, error=ConfigError)
            keep(self, **{name: found})
        for name in ("trainable", "freeze", "dtype"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"{name} must be a text, got {quoted(getattr(self, name))}")
        if not isinstance(self.teacher, str | None):
            raise ConfigError(f"teacher must be a text or None, got {quoted(self.teacher)}")
        for name, accepted in (("freeze", FREEZES), ("dtype", (*DTYPES, AUTO))):
            if (word := getattr(self, name)) not in accepted:
                raise ConfigError(f"{name} must be {' or '.join(accepted)}, got {quoted(word)}")
        if self.dtype == AUTO:
            keep(self, dtype=fastest_dtype())


def fastest_dtype() -> str:
    """bfloat16 where the processor has instructions for it; elsewhere it takes thrice the time."""
    found = torch.cpu.get_capabilities().items()
    return "bfloat16" if any(has and name.endswith("bf16") for name, has in found) else "float32"


def arithmetic(dtype: str) -> contextlib.AbstractContextManager[Any]:
    """Where matrix products are in ``dtype``, whatever what learns is kept in."""
    return contextlib.nullcontext() if dtype == "float32" else torch.autocast("cpu", DTYPES[dtype])


@dataclasses.dataclass
class Progress:
    """What a run has done so far; saved in its state.

    Args:
        places: Of each task its epoch, and how many batches of it were taken.
        watched: What was judged besides, before the first step.
    """

    step: int = 0
    places: list[list[int]] = dataclasses.field(default_factory=list)
    watched: dict[str, Any] = dataclasses.field(default_factory=dict)
    tokens: int = 0
    seconds: float = 0.0
    best_metric: float = -math.inf
    best_step: int = 0
    stale: int = 0
    curve: list[dict[str, float]] = dataclasses.field(default_factory=list)
    evaluations: list[dict[str, Any]] = dataclasses.field(default_factory=list)


def schedule(share: float, warmup: float) -> float:
    """Factor of the learning rate when ``share`` of the run is done: linear, then a cosine to 0."""
    share = min(share, 1.0)
    if share < warmup:
        return share / warmup
    return 0.5 * (1 + math.cos(math.pi * (share - warmup) / (1 - warmup)))


def signal_named(checkpoint: Checkpoint, name: str) -> Signal:
    """A signal of a checkpoint.

    Raises:
        UnsupportedError: It has none of that name.
    """
    signals = {s.name: s for s in checkpoint.config.signals}
    if name not in signals:
        raise UnsupportedError(
            f"there is no signal {name!r}; the checkpoint has {', '.join(signals)}"
        )
    return signals[name]


def trainable_names(
    checkpoint: Checkpoint,
    config: TrainingConfig,
    signals: Collection[str],
    *,
    keep_channel: bool = False,
) -> list[str]:
    """Inserted tensors that ``config.trainable`` matches and that the signals depend on.

    Args:
        checkpoint: Whose tensors.
        config: Also says whether the channel is frozen.
        signals: Names of those that are trained.
        keep_channel: Whether an objective freezes it in any case.

    Raises:
        ConfigError: It is not a regular expression, or nothing matches.
    """
    try:
        pattern = re.compile(config.trainable)
    except re.error as error:
        raise ConfigError(
            f"--trainable {config.trainable!r} is no regular expression: {error}"
        ) from None
    heads = {f"signals.{signal}.{part}" for signal in signals for part in ("weight", "bias")}
    frozen = keep_channel or config.freeze == "channel"
    names = [
        name
        for name in checkpoint.tensors
        if (name in heads or not (frozen or name.startswith("signals."))) and pattern.search(name)
    ]
    if not names:
        raise ConfigError(
            f"--trainable {config.trainable!r} matches no inserted tensor; the names are shown by "
            "otter-export inspect"
        )
    return names
