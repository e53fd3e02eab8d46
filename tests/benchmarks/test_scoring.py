"""L4: benchmarks/scoring.py times what it says, and compares what is the same."""

from __future__ import annotations

import itertools

from benchmarks import scoring
from otter_export.signals import Signal
from tests.runtime.fake_engine import FakeEngine, make_manifest


def test_each_way_feeds_every_token_once() -> None:
    engine = FakeEngine(make_manifest())
    ticks = itertools.count()
    rows = scoring.speeds(engine, ["one", "a", "three"], 1, lambda: float(next(ticks)))
    assert [row[""] for row in rows] == ["prefill", "score", "alone"]
    # A clock that counts its readings: a second each.
    assert [row["ms a token"] for row in rows] == [1e3 / 9] * 3
    assert [row["time / prefill"] for row in rows] == [1.0] * 3
    # Together in one pass, twice; then one by one. And all of it before, to warm up.
    assert engine.calls == 2 * [(3, 5), (3, 5), (1, 3), (1, 1), (1, 5)]


def test_the_difference_is_that_of_the_same_tokens() -> None:
    assert scoring.largest_difference(FakeEngine(make_manifest()), ["ab", "c"], 5) == 0
    next_tokens = FakeEngine(make_manifest(signals=(Signal("next", "q_value"),)))
    assert scoring.largest_difference(next_tokens, ["ab", "c"], 5) == 0
