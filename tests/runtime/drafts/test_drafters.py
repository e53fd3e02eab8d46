"""L4: what each drafter guesses, and what a step costs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export.errors import RequestError
from otter_export.runtime.drafts import make_drafter
from otter_export.runtime.drafts.auto import Auto
from otter_export.runtime.drafts.drafter import MOST_ROWS, Draft, Drafter
from otter_export.runtime.drafts.lookup import LENGTHS, Lookup
from otter_export.runtime.drafts.medusa import MedusaHeads
from otter_export.runtime.drafts.row_costs import RowCosts, row_costs
from otter_export.runtime.drafts.tree import ROOT, TokenTree
from otter_export.signals import Signal
from tests.runtime.fake_engine import REWARD, FakeEngine, make_manifest

TOKENS = st.lists(st.integers(0, 3), min_size=2, max_size=40)


def looked_up(text: list[int], most: int) -> list[int]:
    """What lookup should draft behind the last token of a text, by comparing every place."""
    for size, length in LENGTHS.items():
        ends = range(size - 1, len(text) - 1)
        found = [e for e in ends if text[e + 1 - size : e + 1] == text[len(text) - size :]]
        if found:
            run = list(text)
            for i in range(min(length, most)):
                run.append(run[found[-1] + 1 + i])
            return run[len(text) :]
    return []


@given(TOKENS, st.integers(1, 7), st.integers(1, 5))
def test_lookup_continues_the_longest_and_latest_match(
    text: list[int], most: int, stride: int
) -> None:
    drafter = Lookup()
    # One request: the history grows by a few tokens between calls.
    for end in range(2, len(text) + 1, stride):
        draft = drafter.draft(text[: end - 1], text[end - 1], {}, most)
        assert list(draft.tree.tokens) == looked_up(text[:end], most)
        assert draft.tree == TokenTree.chain(draft.tree.tokens)


def test_lookup_takes_each_token_into_its_index_once() -> None:
    reads = 0

    class Counted(list[int]):
        def __getitem__(self, at):  # type: ignore[no-untyped-def]
            nonlocal reads
            reads += 1
            return super().__getitem__(at)

    drafter = Lookup()
    text = Counted(range(2000))
    drafter.draft(text, 7, {}, 7)
    before = reads
    drafter.draft(text, 7, {}, 7)
    assert reads - before < 20


def test_heads_draft_their_best_token() -> None:
    logits = np.array([[0.0, 2.0, 1.0], [5.0, 4.0, 3.0]], np.float32)
    signals = {"ahead": logits}
    assert MedusaHeads("ahead").draft([1], 2, signals, 7).tree == TokenTree.chain([1, 0])
    assert MedusaHeads("ahead").draft([1], 2, signals, 1).tree == TokenTree.chain([1])
    some = MedusaHeads("ahead", np.array([4, 7, 9], np.int32))
    assert some.draft([1], 2, signals, 7).tree == TokenTree.chain([7, 4])


@given(st.lists(st.integers(0, 100), max_size=10), st.data())
def test_a_tree_sees_its_path(tokens: list[int], data: st.DataObject) -> None:
    parents = tuple(data.draw(st.integers(ROOT, i - 1)) for i in range(len(tokens)))
    tree = TokenTree(tuple(tokens), parents)
    for i in range(len(tokens)):
        path = [i]
        while parents[path[-1]] != ROOT:
            path.append(parents[path[-1]])
        assert sorted(path) == np.flatnonzero(tree.seen[i]).tolist()
        assert tree.depths[i] == len(path) - 1
    grafted = TokenTree.siblings([5, 6]).graft(tree, parent=0)
    assert grafted.depths.tolist() == [0, 0, *(tree.depths + 1)]
    assert not grafted.seen[2:, 1].any()


def test_costs_are_those_of_the_quickest_steps() -> None:
    costs = RowCosts(even=False)
    assert costs.seconds(1) == costs.seconds(8)
    for seconds in (2.0, 9.0, 2.5):
        costs.record(1, 2, seconds)
    assert costs.seconds(2) == 2.0
    # Not measured: it is hoped that rows are for nothing, and that one alone costs half of two.
    assert costs.seconds(MOST_ROWS) == 2.0
    assert costs.seconds(2 * MOST_ROWS) == 4.0
    assert costs.seconds(1) == 1.0
    for _ in range(3):
        costs.record(1, 6, 6.0)
    assert costs.seconds(4) == 4.0
    # A mistaken time is forgotten.
    for _ in range(5):
        costs.record(1, 2, 3.0)
    assert costs.seconds(2) == 3.0
    costs.record(3, 2, 7.0)  # three sequences: six rows
    assert costs.seconds(2) == 6.0


def test_steps_of_several_tokens_cost_what_even_ones_cost() -> None:
    costs = RowCosts(even=True)
    for width in (1, 4):
        for _ in range(3):
            costs.record(1, width, float(width))
    assert costs.seconds(1) == 1.0
    assert costs.seconds(3) == 4.0


class Fixed(Drafter):
    """Always the same."""

    def __init__(self, *tokens: int) -> None:
        self.draft_ = Draft(TokenTree.chain(tokens), f"fixed {tokens}")

    def draft(self, history, token, signals, most):  # type: ignore[no-untyped-def]
        return Draft(self.draft_.tree.first(most), self.draft_.source)


def known_costs(each: float) -> RowCosts:
    """One row is 1, further ones are this each."""
    costs = RowCosts(even=False)
    for width in range(MOST_ROWS, 0, -1):
        for _ in range(3):
            costs.record(1, width, 1 + each * (width - 1))
    return costs


def length_of_draft(drafters: list[Drafter], text: list[int], each: float) -> int:
    """How many tokens are drafted at the end, with the text one token longer in each step."""
    auto = Auto(drafters, known_costs(each))
    for end in range(1, len(text)):
        draft = auto.draft(text[:end], text[end], {}, 7)
    return len(draft.tree)


def test_auto_drafts_what_comes_true_and_pays() -> None:
    right, wrong = Fixed(*[1] * 7), Fixed(*[2] * 7)
    text = [1] * 60
    assert length_of_draft([right], text, each=0.2) == 7
    assert length_of_draft([wrong, right], text, each=0.2) == 7
    # Always right, but a row costs what a step costs.
    assert length_of_draft([right], text, each=1.1) == 0
    # Never right.
    assert length_of_draft([wrong], text, each=0.05) == 0


def test_auto_drafts_as_far_as_it_is_right() -> None:
    # Behind every 1 comes 1 but for the third: the first and the second draft are often right.
    text = [1, 1, 1, 2] * 30
    assert length_of_draft([Fixed(*[1] * 7)], text, each=0.3) in (1, 2)


def test_auto_takes_up_again_what_begins_to_be_right() -> None:
    drafter = Fixed(*[1] * 7)
    assert length_of_draft([drafter], [2] * 80, each=0.2) == 0
    assert length_of_draft([drafter], [2] * 80 + [1] * 80, each=0.2) == 7


def test_what_a_request_may_say_is_named() -> None:
    engine = FakeEngine(make_manifest(signals=(REWARD, Signal("ahead", "medusa", bounds=None))))
    assert make_drafter("none", engine) is None
    assert isinstance(make_drafter("ahead", engine), MedusaHeads)
    for name in ("reward", "medusa", ""):
        with pytest.raises(
            RequestError, match=r"one of none, lookup, auto, ahead here, got '"
        ) as c:
            make_drafter(name, engine)
        assert "\n" not in str(c.value)


def test_costs_are_kept_for_each_engine() -> None:
    one, other = FakeEngine(), FakeEngine()
    assert row_costs(one) is row_costs(one)
    assert row_costs(one) is not row_costs(other)
