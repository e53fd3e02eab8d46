"""L4: padding, parts and masks of a step, and the moves of kept rows, on their own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export.errors import EngineError
from otter_export.runtime.memory.block import Move, kept_moves, runs
from otter_export.runtime.step_inputs import (
    Padding,
    Part,
    Tokens,
    check_tree,
    in_place_inputs,
    join_outputs,
    plan_parts,
    read_only_inputs,
    slot_mask,
)


@given(
    step=st.integers(1, 40),
    keep=st.integers(1, 40),
    most=st.integers(1, 20),
    most_kept=st.integers(1, 20),
)
def test_parts_cover_the_step_and_keep_every_wanted_row(
    step: int, keep: int, most: int, most_kept: int
) -> None:
    keep = min(keep, step)
    parts = plan_parts(step, keep, lambda s, kept: s <= most and kept <= most_kept)
    assert parts[0].start == 0 and parts[-1].stop == step
    assert all(a.stop == b.start for a, b in itertools.pairwise(parts))
    assert all(1 <= p.step <= most and p.kept <= most_kept for p in parts)
    wanted = [row for p in parts for row in range(p.stop - p.kept, p.stop)]
    assert wanted == list(range(step - keep, step))


def test_parts_are_as_long_as_they_can_be() -> None:
    assert plan_parts(20, 1, lambda s, kept: s <= 8) == (
        Part(0, 8, 0),
        Part(8, 16, 0),
        Part(16, 20, 1),
    )
    assert plan_parts(5, 5, lambda s, kept: kept <= 8) == (Part(0, 5, 5),)


def test_an_engine_without_a_usable_profile_is_refused() -> None:
    with pytest.raises(EngineError, match="no optimisation profile"):
        plan_parts(1, 1, lambda step, kept: False)


def test_a_mask_written_out_by_hand() -> None:
    """Two sequences with prefixes of 2 and 0; the second token of the first sees only itself."""
    tree = np.array([[[1, 0], [0, 1]], [[1, 0], [1, 1]]], np.bool_)
    mask = slot_mask(np.array([2, 0]), tree, 0, 5, Padding())
    assert mask.shape == (2, 1, 2, 5)
    assert mask[:, 0].astype(int).tolist() == [
        [[1, 1, 1, 0, 0], [1, 1, 0, 1, 0]],
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]],
    ]


def test_a_later_part_sees_the_rows_of_those_before() -> None:
    part = Part(2, 4, 1)
    ids = np.arange(4, dtype=np.int64)[None]
    tokens = Tokens(ids, ids + 3, np.tri(4, dtype=np.bool_)[None], 1)
    inputs = in_place_inputs(tokens, part, np.array([3]), 8, Padding())
    assert inputs.arrays["input_ids"].tolist() == [[2, 3]]
    assert inputs.arrays["position_ids"].tolist() == [[5, 6]]
    assert inputs.arrays["write_indices"].tolist() == [5]
    assert inputs.arrays["kept_rows"].tolist() == [[1]]
    assert inputs.shape == (1, 2, 1)
    assert inputs.arrays["attention_mask"][0, 0].astype(int).tolist() == [
        [1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 0],
    ]


def test_a_padding_row_sees_itself() -> None:
    mask = slot_mask(np.array([0]), np.zeros((1, 2, 2), np.bool_), 0, 3, Padding())
    assert mask[0, 0].astype(int).tolist() == [[1, 0, 0], [0, 1, 0]]


def test_a_tree_that_looks_ahead_cannot_be_divided() -> None:
    tree = np.ones((1, 4, 4), np.bool_)
    check_tree(tree, [Part(0, 4, 1)])
    with pytest.raises(EngineError, match=r"4 tokens and runs in parts of 2.*order the tree"):
        check_tree(tree, [Part(0, 2, 0), Part(2, 4, 1)])


def test_outputs_of_parts_that_nobody_asked_for_are_dropped() -> None:
    parts = [Part(0, 2, 0), Part(2, 4, 1), Part(4, 6, 2)]
    outputs = [{"logits": np.full((1, max(p.kept, 1), 3), i)} for i, p in enumerate(parts)]
    joined = join_outputs(parts, outputs)["logits"]
    assert joined[0, :, 0].tolist() == [1, 2, 2]


@given(st.integers(1, 5), st.integers(1, 6), st.data())
def test_padding_makes_rows_even_and_is_dropped_again(
    batch: int, step: int, data: st.DataObject
) -> None:
    kept = data.draw(st.integers(1, step))
    padding = Padding.to_pairs(batch, step, kept)
    ids = np.arange(batch * step, dtype=np.int64).reshape(batch, step)
    tree = np.broadcast_to(np.tri(step, dtype=np.bool_), (batch, step, step))
    inputs = read_only_inputs(Tokens(ids, ids, tree, kept), np.full(batch, 2), 4, padding)
    b, s, r = inputs.shape
    assert b * s % 2 == 0 and b * r % 2 == 0
    # What is asked for lies before the padding and inside what is kept.
    assert padding.kept - padding.tokens >= 0 and r <= s
    # One row more, or one of each sequence; the cache has room for one more sequence.
    assert b * s - batch * step in (0, 1, batch)
    assert inputs.arrays["input_ids"].shape == (b, s)
    assert inputs.arrays["logits_to_keep"].tolist() == [r]
    mask = inputs.arrays["attention_mask"]
    assert mask.shape == (b, s, 4 + s) and mask.any(axis=-1).all()
    assert np.array_equal(mask[:batch, :step, 4 : 4 + step], tree)
    assert mask[:batch, :, :2].all() and not mask[:, :, 2:4].any()
    # The rows that come out are the last r of the padded step; of them the asked ones are ours.
    fed = inputs.arrays["input_ids"][:, s - r :]
    assert np.array_equal(fed[padding.asked(batch, kept)], ids[:, step - kept :])


def test_rows_that_follow_each_other_move_together() -> None:
    assert list(runs([4, 5, 6, 9, 2, 3])) == [(0, 4, 3), (3, 9, 1), (4, 2, 2)]
    assert list(runs(range(7))) == [(0, 0, 7)]
    assert list(runs([])) == []


def test_kept_rows_come_to_stand_behind_their_prefixes() -> None:
    moves = kept_moves([4, 9], [[0, 2], [3]], [4, 9])
    assert moves == [Move(0, 4, 0, 4, 1), Move(0, 5, 0, 6, 1), Move(1, 9, 1, 12, 1)]
    assert kept_moves([4], [[0, 1, 2]], [0]) == [Move(0, 4, 0, 0, 3)]
