"""L0: objectives and metrics on numbers that can be checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from otter_export.errors import UnsupportedError
from otter_export.modeling.data import Batch, Item, Row, collate
from otter_export.modeling.objectives import (
    Evaluated,
    Pairwise,
    Regression,
    objective_for,
    pearson,
    prefix_rewards,
    response_rewards,
)
from otter_export.modeling.otter_model import OtterOutput
from otter_export.signals import Signal
from tests import tiny


def output(name: str, values: torch.Tensor) -> OtterOutput:
    return OtterOutput(torch.zeros(0), {name: values}, None)


def batch(*rows: tuple[int, int], score: float = 0.0) -> Batch:
    """Rows of (start, length), two to an item."""
    made = [Row(tuple(range(3, 3 + length)), start) for start, length in rows]
    return collate([Item(i, (row,), score) for i, row in enumerate(made)])


def test_value_rewards_are_the_rows_themselves() -> None:
    values = torch.tensor([[0.1, 0.2, 0.3]])
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(response_rewards(output("reward", values), ids, tiny.REWARD), values)


def test_q_value_rewards_come_from_the_row_before() -> None:
    values = torch.arange(24.0).reshape(1, 3, 8)
    rewards = response_rewards(output("next", values), torch.tensor([[5, 6, 7]]), tiny.NEXT)
    # Row 0 scores token 6, row 1 scores token 7; nothing scores the first token.
    assert rewards.tolist() == [[0.0, 6.0, 15.0]]


def test_other_kinds_are_no_rewards() -> None:
    signal = Signal("drafts", "medusa", "identity", None, 2)
    with pytest.raises(UnsupportedError, match="value and q_value"):
        response_rewards(output("drafts", torch.zeros(1, 2, 2, 8)), torch.zeros(1, 2), signal)


def test_regression_averages_over_the_response_alone() -> None:
    data = batch((2, 4), (0, 3), score=0.5)
    rewards = torch.full((2, 4), 9.0)
    rewards[0, 2:] = torch.tensor([0.5, 1.5])
    rewards[1, :3] = torch.tensor([0.5, 0.5, 1.0])
    assert float(Regression().loss(rewards, data)) == pytest.approx((1.0 + 0.25) / 5)


def test_pairwise_compares_prefixes_of_equal_length() -> None:
    chosen, rejected = Row((3, 4, 5, 6), 1), Row((3, 7, 8), 1)
    data = collate([Item(1, (chosen, rejected))])
    rewards = torch.tensor([[9.0, 1.0, 2.0, 3.0], [9.0, 0.5, -1.0, 9.0]])
    # The rejected response ends first: its final reward meets the chosen one's third prefix.
    expected = [math.log1p(math.exp(-2.0 * d)) for d in (0.5, 3.0, 4.0)]
    assert float(Pairwise(2.0).loss(rewards, data)) == pytest.approx(sum(expected) / 3)


def test_pairwise_scale_follows_the_bounds() -> None:
    assert objective_for("pairwise", tiny.REWARD) == Pairwise(3.0)
    unbounded = Signal("reward", "value", "identity", None)
    assert objective_for("pairwise", unbounded) == Pairwise(1.0)
    with pytest.raises(UnsupportedError, match="known: regression, pairwise"):
        objective_for("ranking", tiny.REWARD)


def test_accuracy_counts_ties_half() -> None:
    rewards = {"100": np.array([1.0, 0.0, 0.0, 1.0, 2.0, 2.0, 3.0, 2.0])}
    metrics = Pairwise().metrics(Evaluated(rewards, np.zeros(8)))
    assert metrics == {"100": pytest.approx(2.5 / 4)}


def test_prefix_rewards_pick_the_ends_of_prefixes() -> None:
    data = batch((2, 11))  # 9 response tokens, the last of which is the end token
    rewards = torch.arange(11.0)[None]
    found = prefix_rewards(rewards, data, ends=True)
    # 8 text tokens at columns 2..9: a quarter ends at column 3.
    assert found == {"25": [3.0], "50": [5.0], "75": [7.0], "100": [9.0], "end": [10.0]}
    assert "end" not in prefix_rewards(rewards, data, ends=False)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 9)), min_size=1, max_size=5))
def test_prefixes_never_leave_the_response(rows: list[tuple[int, int]]) -> None:
    data = batch(*((start, start + length) for start, length in rows))
    size = data.ids.shape[1]
    columns = prefix_rewards(torch.arange(float(size)).repeat(len(rows), 1), data, ends=True)
    for i, (start, length) in enumerate(rows):
        picked = [columns[key][i] for key in ("25", "50", "75", "100")]
        assert picked == sorted(picked)
        assert start <= picked[0]
        assert picked[-1] <= columns["end"][i] == start + length - 1


def test_pearson_equals_numpy_and_survives_constants() -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 50))
    assert pearson(x, y) == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert pearson(x, np.ones(50)) == 0.0
