"""L4: the parts of a step, their masks, and the moves of kept rows, on their own."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export.errors import EngineError
from otter_export.runtime.backends.in_place_plan import (
    Part,
    attention_mask,
    check_tree,
    join_outputs,
    part_inputs,
    plan_parts,
    row_moves,
    sequence_moves,
    step_moves,
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
    mask = attention_mask(np.array([2, 0]), tree, 0, 5)
    assert mask.shape == (2, 1, 2, 5)
    assert mask[:, 0].astype(int).tolist() == [
        [[1, 1, 1, 0, 0], [1, 1, 0, 1, 0]],
        [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0]],
    ]


def test_a_later_part_sees_the_rows_of_those_before() -> None:
    part = Part(2, 4, 1)
    ids = np.arange(4, dtype=np.int64)[None]
    inputs = part_inputs(part, np.array([3]), 8, ids, ids + 3, np.tri(4, dtype=np.bool_)[None])
    assert inputs.input_ids.tolist() == [[2, 3]]
    assert inputs.position_ids.tolist() == [[5, 6]]
    assert inputs.write_indices.tolist() == [5]
    assert inputs.kept_rows.tolist() == [[1]]
    assert inputs.shape == (1, 2, 1)
    assert inputs.attention_mask[0, 0].astype(int).tolist() == [
        [1, 1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 1, 0],
    ]


def test_a_padding_row_sees_itself() -> None:
    mask = attention_mask(np.array([0]), np.zeros((1, 2, 2), np.bool_), 0, 3)
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


def test_rows_in_place_do_not_move() -> None:
    assert len(row_moves(np.array([4, 9]), [[0, 1, 2], []])) == 0
    moves = row_moves(np.array([4, 9]), [[0, 2], [3]])
    assert [m.tolist() for m in (moves.places, moves.slots, moves.source_slots)] == [
        [0, 1],
        [5, 9],
        [6, 12],
    ]
    assert (moves.source_places == moves.places).all()


def test_rows_of_another_block_all_move() -> None:
    moves = row_moves(np.array([4]), [[0, 2]], np.array([0]))
    assert moves.slots.tolist() == [4, 5] and moves.source_slots.tolist() == [0, 2]


def test_moves_of_sequences_and_steps() -> None:
    whole = sequence_moves([(0, 2, 3), (1, 5, 1)])
    assert whole.places.tolist() == [0, 0, 0, 1]
    assert whole.source_places.tolist() == [2, 2, 2, 5]
    assert whole.slots.tolist() == whole.source_slots.tolist() == [0, 1, 2, 0]
    step = step_moves(np.array([7, 0]), 2)
    assert step.slots.tolist() == [0, 1, 0, 1]
    assert step.source_slots.tolist() == [7, 8, 0, 1]
