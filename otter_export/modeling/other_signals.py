"""Changes of the other signals by the training of some: they read the same channel."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from otter_export.checkpoint import Checkpoint
from otter_export.modeling.data import Item, batches
from otter_export.modeling.otter_model import OtterModel
from otter_export.modeling.training_config import TrainingConfig, arithmetic

#: Items that are compared; two forward passes each.
_ITEMS = 32


def others_at_stake(
    checkpoint: Checkpoint, signals: Collection[str], trained: Sequence[str]
) -> list[str]:
    """Names of the signals that change when these tensors do, besides the trained ones."""
    if all(name.startswith("signals.") for name in trained):
        return []
    return [s.name for s in checkpoint.config.signals if s.name not in signals]


@torch.no_grad()
def changes(
    checkpoint: Checkpoint,
    model: OtterModel,
    parameters: Mapping[str, nn.Parameter],
    names: Sequence[str],
    items: Sequence[Item],
    config: TrainingConfig,
) -> dict[str, dict[str, float]]:
    """How far signals are from those of the checkpoint, on some items.

    Args:
        checkpoint: As it was before the training.
        model: As it is after it.
        parameters: What was trained, of the model, by name.
        names: The signals to compare.
        items: Texts.
        config: Of the run: how many tokens a pass has, and in which dtype.

    Returns:
        By signal: ``mean_change``, of its output at a token, and ``relative``, the same in units of
        the output's standard deviation before.
    """
    if not names:
        return {}
    after = {name: p.detach().clone() for name, p in parameters.items()}
    before = {
        name: torch.from_numpy(checkpoint.float32(name).copy()).reshape(p.shape)
        for name, p in parameters.items()
    }
    sums = {name: torch.zeros(4, dtype=torch.float64) for name in names}
    for batch in batches(items[:_ITEMS], config.batch_tokens):
        outputs = []
        for values in (before, after):
            _set(parameters, values)
            with arithmetic(config.dtype):
                output = model(
                    batch.ids, compute_logits=False, compute_signals=names, use_cache=False
                )
            outputs.append(output.signals)
        for name in names:
            old, new = (output[name][batch.supervised].double() for output in outputs)
            count = torch.tensor(float(old.numel()), dtype=torch.float64)
            sums[name] += torch.stack((count, (new - old).abs().sum(), old.sum(), (old**2).sum()))
    return {name: _figures(*sums[name].tolist()) for name in names}


def _set(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def _figures(count: float, change: float, total: float, squares: float) -> dict[str, float]:
    spread = max(squares / count - (total / count) ** 2, 0.0) ** 0.5
    mean = change / count
    return {"mean_change": mean, "relative": mean / spread if spread else 0.0}
