"""L0: the objectives of rewards on numbers that can be checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from otter_export.modeling.data import Batch, Item, Row, collate
from otter_export.modeling.objectives.pairwise import Pairwise
from otter_export.modeling.objectives.regression import Regression
from otter_export.modeling.otter_model import OtterOutput
from tests import tiny


def output(rewards: torch.Tensor) -> OtterOutput:
    return OtterOutput(torch.zeros(0), {"reward": rewards}, torch.zeros(0), None)


def no_head(channel: torch.Tensor) -> torch.Tensor:
    raise AssertionError("rewards are read from the output")


def batch(*rows: tuple[int, int], score: float = 0.0) -> Batch:
    """Rows of (start, length), one to an item."""
    made = [Row(tuple(range(3, 3 + length)), start) for start, length in rows]
    return collate([Item(i, (row,), score) for i, row in enumerate(made)])


def test_regression_averages_over_the_response_alone() -> None:
    data = batch((2, 4), (0, 3), score=0.5)
    rewards = torch.full((2, 4), 9.0)
    rewards[0, 2:] = torch.tensor([0.5, 1.5])
    rewards[1, :3] = torch.tensor([0.5, 0.5, 1.0])
    loss = Regression(tiny.REWARD).loss(output(rewards), data, no_head)
    assert float(loss) == pytest.approx((1.0 + 0.25) / 5)


def test_regression_is_judged_by_the_correlation_with_the_scores() -> None:
    rows = [Row((3, 4, 5), 0)] * 4
    scores = [0.1, -0.4, 0.6, 0.2]
    data = collate(
        [Item(i, (row,), s) for i, (row, s) in enumerate(zip(rows, scores, strict=True))]
    )
    rewards = torch.tensor(np.random.default_rng(0).standard_normal((4, 3)), dtype=torch.float32)
    objective = Regression(tiny.REWARD)
    metrics = objective.metrics(objective.judge(output(rewards), data, no_head, ends=True))
    assert set(metrics) == {"25", "50", "75", "100", "end"}
    expected = np.corrcoef(rewards[:, 2].numpy(), scores)[0, 1]
    assert metrics["end"] == pytest.approx(expected, abs=1e-6)  # rewards are float32


def test_pairwise_compares_prefixes_of_equal_length() -> None:
    chosen, rejected = Row((3, 4, 5, 6), 1), Row((3, 7, 8), 1)
    data = collate([Item(1, (chosen, rejected))])
    rewards = torch.tensor([[9.0, 1.0, 2.0, 3.0], [9.0, 0.5, -1.0, 9.0]])
    # The rejected response ends first: its final reward meets the chosen one's third prefix.
    expected = [math.log1p(math.exp(-2.0 * d)) for d in (0.5, 3.0, 4.0)]
    loss = Pairwise(tiny.REWARD, 2.0).loss(output(rewards), data, no_head)
    assert float(loss) == pytest.approx(sum(expected) / 3)


def test_accuracy_counts_ties_half() -> None:
    judged = {"100": np.array([1.0, 0.0, 0.0, 1.0, 2.0, 2.0, 3.0, 2.0])}
    assert Pairwise(tiny.REWARD).metrics(judged) == {"100": pytest.approx(2.5 / 4)}
