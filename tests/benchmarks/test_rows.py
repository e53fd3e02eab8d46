"""L4: benchmarks/rows.py counts what a scheduler feeds; its best division is the best of all."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import rows
from otter_export import ArgsGreedy
from tests.runtime.fake_engine import FakeEngine, make_manifest


def divisions(widths: list[int]) -> list[list[list[int]]]:
    """All ways to cut a sorted list."""
    ordered, found = sorted(widths), []
    for cuts in itertools.product([False, True], repeat=len(widths) - 1):
        batches = [[ordered[0]]]
        for cut, width in zip(cuts, ordered[1:], strict=True):
            if cut:
                batches.append([])
            batches[-1].append(width)
        found.append(batches)
    return found


@settings(max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=7), st.booleans())
def test_no_division_into_batches_costs_less(widths: list[int], even: bool) -> None:
    engine = FakeEngine(make_manifest())
    engine.even_steps = even

    def computed(batches: list[list[int]]) -> int:
        more = [max(batch) % 2 if even else 0 for batch in batches]
        return sum(len(b) * (max(b) + m) for b, m in zip(batches, more, strict=True))

    found, passes = rows._best_passes(engine, widths)
    costs = [computed(b) + rows.PASS_ROWS * len(b) for b in divisions(widths)]
    assert found + rows.PASS_ROWS * passes == min(costs)


def test_counts_are_those_of_the_engine() -> None:
    engine = FakeEngine(make_manifest(eos_token_ids=()), spread=3.0)
    found = rows.counted(engine, ArgsGreedy(top_k=8, weight=1.0, prune=False), tokens=6)
    # Nothing is left out: eight rows a token, one pass a step, and no padding.
    assert found["fed"] == found["computed"] == 8.0
    assert (found["repeated"], found["passes"]) == (0, 1)
    pruned = rows.counted(engine, ArgsGreedy(top_k=8, weight=1.0), tokens=6)
    assert 1 <= pruned["fed"] <= pruned["computed"] < 8
    assert pruned["best: computed"] <= pruned["computed"]
