"""L2: gradients reach the channel alone, and they are right."""

from __future__ import annotations

from pathlib import Path

import torch

from otter_export.modeling.otter_model import OtterModel
from tests import tiny
from tests.modeling.reference import load, tokens

SIGNALS = (tiny.REWARD, tiny.NEXT)


def objective(model: OtterModel, ids: torch.Tensor) -> torch.Tensor:
    """A scalar in which every row of both signals counts differently."""
    output = model(ids, compute_logits=False)
    total = torch.zeros((), dtype=torch.float64)
    for seed, values in enumerate(output.signals.values()):
        generator = torch.Generator().manual_seed(seed)
        weights = torch.rand(values.shape, generator=generator, dtype=torch.float64)
        total = total + (values * weights).sum()
    return total


def test_gradients_reach_every_channel_tensor_and_no_base_tensor(
    tmp_path: Path, family: str
) -> None:
    _, model, _ = load(tmp_path, family, torch.float64, signals=SIGNALS)
    objective(model, tokens(2, 9)).backward()
    channel = dict(model.channel_parameters())
    for name, parameter in channel.items():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    inserted = {id(parameter) for parameter in channel.values()}
    base = [(n, p) for n, p in model.named_parameters() if id(p) not in inserted]
    assert base
    assert all(p.grad is None and not p.requires_grad for _, p in base)


def test_gradients_equal_finite_differences(tmp_path: Path, family: str) -> None:
    _, model, _ = load(tmp_path, family, torch.float64, signals=SIGNALS)
    ids = tokens(2, 6)
    objective(model, ids).backward()
    step = 1e-6
    for name, parameter in model.channel_parameters():
        assert parameter.grad is not None
        # The entry that matters most: elsewhere rounding could hide a wrong rule.
        index = int(parameter.grad.abs().argmax())
        flat = parameter.data.view(-1)
        kept = float(flat[index])
        values = []
        for sign in (1, -1):
            flat[index] = kept + sign * step
            with torch.no_grad():
                values.append(float(objective(model, ids)))
        flat[index] = kept
        numeric = (values[0] - values[1]) / (2 * step)
        analytic = float(parameter.grad.view(-1)[index])
        # Central differences in float64: truncation 1e-12, rounding of the sum 1e-13 / 1e-6.
        assert abs(numeric - analytic) <= 1e-5 * abs(analytic) + 1e-6, name


def test_logits_need_no_gradient(tmp_path: Path, family: str) -> None:
    _, model, _ = load(tmp_path, family)
    output = model(tokens(1, 5))
    assert output.signals["reward"].requires_grad
    assert not output.logits.requires_grad
