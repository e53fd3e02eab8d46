"""L0: a q_value learns the value of the prefix that each next token makes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from otter_export.checkpoint import Checkpoint
from otter_export.errors import UnsupportedError
from otter_export.modeling.alternatives import Alternatives
from otter_export.modeling.data import Batch, Item, Row, collate
from otter_export.modeling.objectives.distill import Compared, Distill
from otter_export.modeling.otter_model import OtterOutput, load_reference
from otter_export.modeling.training_config import TrainingConfig
from otter_export.signals import Signal
from tests import tiny


def no_head(channel: torch.Tensor) -> torch.Tensor:
    raise AssertionError("scores are read from the output")


def test_the_label_is_the_value_in_the_token_s_own_row() -> None:
    data = collate([Item(0, (Row((4, 5, 6), 1),))])
    values = torch.tensor([[9.0, 0.5, -0.25]], requires_grad=True)
    scores = torch.zeros(1, 3, 8, requires_grad=True)
    output = OtterOutput(torch.zeros(0), {"reward": values, "next": scores}, torch.zeros(0), None)
    loss = Distill(tiny.NEXT, tiny.REWARD).loss(output, data, no_head)
    assert float(loss.detach()) == pytest.approx((0.5**2 + 0.25**2) / 2)
    loss.backward()  # type: ignore[no-untyped-call]
    assert values.grad is None, "the teacher does not follow"
    assert scores.grad is not None
    # Row 0 scores token 5, row 1 token 6.
    assert [tuple(at) for at in scores.grad.nonzero().tolist()] == [(0, 0, 5), (0, 1, 6)]


def test_the_metric_is_the_correlation_with_the_value() -> None:
    generator = np.random.default_rng(0)
    found = Distill(tiny.NEXT, tiny.REWARD).metrics({"end": generator.standard_normal((20, 2))})
    pairs = np.random.default_rng(0).standard_normal((20, 2))
    assert found["end"] == pytest.approx(np.corrcoef(pairs.T)[0, 1])


def test_a_teacher_is_a_value_signal_whose_range_can_be_reached(tmp_path: Path) -> None:
    free = Signal("free", "value", "identity", None)
    signals = (tiny.NEXT, tiny.REWARD, free)
    checkpoint = Checkpoint.open(tiny.write_checkpoint(tmp_path / "ck", signals=signals))
    config = TrainingConfig(alternatives=3)
    assert Distill.of(checkpoint, config, tiny.NEXT) == Distill(tiny.NEXT, tiny.REWARD, 3)
    with pytest.raises(UnsupportedError, match=r"--teacher 'next' is no value .*: reward, free"):
        Distill.of(checkpoint, dataclasses.replace(config, teacher="next"), tiny.NEXT)
    with pytest.raises(UnsupportedError, match=r"'free' has no bounds; .* activation identity"):
        Distill.of(checkpoint, dataclasses.replace(config, teacher="free"), tiny.NEXT)
    alone = Checkpoint.open(tiny.write_checkpoint(tmp_path / "alone", signals=(tiny.NEXT,)))
    with pytest.raises(UnsupportedError, match="has no value signal"):
        Distill.of(alone, config, tiny.NEXT)


def compared() -> tuple[Compared, Batch]:
    """A text of three tokens; tokens 2 and 3 were tried behind its first two."""
    data = collate([Item(0, (Row((4, 5, 6), 1),))])
    scores = torch.zeros(1, 3, 8)
    scores[0, 0, [2, 3]], scores[0, 1, [2, 3]] = torch.tensor([0.5, 0.25]), torch.tensor([0.0, 1.0])
    tried = Alternatives(
        torch.tensor([[0, 1]]),
        torch.tensor([[[2, 3], [2, 3]]]),
        torch.tensor([[[0.5, 0.75], [0.5, 1.0]]]),
    )
    values = torch.tensor([[9.0, 0.5, -0.25]])
    output = Compared(
        torch.zeros(0), {"reward": values, "next": scores}, torch.zeros(0), None, tried
    )
    return output, data


def test_alternatives_are_learned_like_the_text() -> None:
    output, data = compared()
    loss = Distill(tiny.NEXT, tiny.REWARD, 2).loss(output, data, no_head)
    assert float(loss) == pytest.approx((0.5**2 + 0.25**2 + 0.5**2 + 0.5**2) / 6)


def test_alternatives_are_judged_by_how_they_differ() -> None:
    output, data = compared()
    objective = Distill(tiny.NEXT, tiny.REWARD, 2)
    assert objective.chosen == "alternatives" and Distill(tiny.NEXT, tiny.REWARD).chosen == "100"
    found = objective.judge(output, data, no_head, ends=False)
    # Around their mean at each of the two positions: score, value.
    pairs = [[0.125, -0.125], [-0.125, 0.125], [-0.5, -0.25], [0.5, 0.25]]
    np.testing.assert_allclose(found["alternatives"], pairs, rtol=1e-6)
    expected = np.corrcoef(np.transpose(pairs))[0, 1]
    assert objective.metrics(found)["alternatives"] == pytest.approx(expected)


def test_a_start_is_the_value_of_the_text_before(tmp_path: Path) -> None:
    free = Signal("free", "q_value", "identity", None)
    signals = (tiny.REWARD, tiny.NEXT, free)
    path = tiny.write_checkpoint(tmp_path / "ck", signals=signals, initialization="copy")
    model = load_reference(Checkpoint.open(path))
    assert Distill(free, tiny.REWARD).start(model) == {}, "tanh is no identity"
    start = Distill(tiny.NEXT, tiny.REWARD).start(model)
    parameters = dict(model.channel_parameters())
    with torch.no_grad():
        for name, tensor in start.items():
            parameters[name].copy_(tensor)
        found = model(torch.tensor([[4, 5, 6]])).signals
    # Every token's score is the row's value; float32 sums in another order.
    torch.testing.assert_close(found["next"], found["reward"][..., None].expand(1, 3, 128))
