"""L2: alternatives in one pass behind a cache have the values of prefixes that are fed alone."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache

from otter_export.modeling.alternatives import EVERY, alternatives, positions
from otter_export.modeling.data import Batch, Item, Row, collate
from otter_export.modeling.otter_model import OtterModel, load_reference
from tests import built, tiny
from tests.families import bases


def batch_of(*lengths: tuple[int, int]) -> Batch:
    """Rows of (start, length)."""
    generator = np.random.default_rng(0)
    rows = [Row(tuple(generator.integers(3, 60, size).tolist()), start) for start, size in lengths]
    return collate([Item(i, (row,)) for i, row in enumerate(rows)])


@pytest.fixture(params=["llama", "gpt2", "mistral-window", "gemma2"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> OtterModel:
    """Also with windows of 8, in all layers and in every other one."""
    if request.param in tiny.CONFIGS:
        checkpoint = built.random_checkpoint(tmp_path / "ck", request.param)
    else:
        case = next(case for case in bases.CASES if case.name == request.param)
        base = bases.write_base(case, tmp_path / "base")
        checkpoint = built.checkpoint_over(base, tmp_path / "ck")
    model = load_reference(checkpoint)
    model.base.set_attn_implementation("eager")
    return model


@torch.no_grad()
def test_each_is_worth_what_its_prefix_is_worth_alone(model: OtterModel) -> None:
    data = batch_of((1, 30), (9, 24), (4, 5))
    cache = DynamicCache()
    logits = model(data.ids, past_key_values=cache, use_cache=True).logits
    found = alternatives(model, data, cache, logits, 3, "reward")
    assert found.at.shape == (3, -(-29 // EVERY)) and found.tokens.shape == (*found.at.shape, 3)
    for row, places in enumerate(found.at.tolist()):
        for i, at in enumerate(places):
            prefix = data.ids[row, : at + 1]
            output = model(prefix[None], use_cache=False)
            best = output.logits[0, -1].topk(3).indices
            assert torch.equal(found.tokens[row, i], best)
            for j, token in enumerate(best):
                alone = model(torch.cat((prefix, token[None]))[None], use_cache=False)
                value = alone.signals["reward"][0, -1]
                # float32 sums in another order.
                assert abs(float(found.values[row, i, j] - value)) < 1e-5


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 60)).map(lambda p: (p[0], p[0] + p[1])),
        min_size=1,
        max_size=5,
    )
)
def test_positions_lie_before_supervised_tokens_and_spread(lengths: list[tuple[int, int]]) -> None:
    data = batch_of(*lengths)
    found = positions(data)
    longest = max(size - start for start, size in lengths)
    assert found.shape == (len(lengths), -(-longest // EVERY))
    for row, (start, size) in zip(found.tolist(), lengths, strict=True):
        # The token behind each is supervised, and none of them is far from the next.
        assert all(start - 1 <= place < size - 1 for place in row)
        gaps = [b - a for a, b in itertools.pairwise(row)]
        assert all(0 <= gap <= (size - start) / len(row) + 1 for gap in gaps)


def test_a_text_has_other_places_in_another_row() -> None:
    same = positions(batch_of(*[(1, 17)] * 8))
    assert len(set(map(tuple, same.tolist()))) > 4
