"""L0: rewards of prefixes, on numbers that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from otter_export.errors import UnsupportedError
from otter_export.modeling.data import Batch, Item, Row, collate
from otter_export.modeling.objectives.rewards import pearson, prefix_rewards, response_rewards
from otter_export.modeling.otter_model import OtterOutput
from otter_export.signals import Signal
from tests import tiny


def output(name: str, values: torch.Tensor) -> OtterOutput:
    return OtterOutput(torch.zeros(0), {name: values}, torch.zeros(0), None)


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
