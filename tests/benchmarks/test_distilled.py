"""L0: benchmarks/distilled.py compares gains over plain, and guides by either signal alike."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the demo's comparison draws")
distilled = pytest.importorskip("benchmarks.distilled", reason="the demo's judges need 'train'")


def test_kept_is_the_share_of_the_gain_of_the_value() -> None:
    plain = np.array([0.0, 0.5, 1.0, -0.5])
    scores = {
        name: dict.fromkeys(distilled.JUDGES, plain + gain)
        for name, gain in (("plain", 0.0), ("value", 0.5), ("student", 0.4))
    }
    speed = {"ratio": 0.97, "median": 12.0}
    row = distilled.row_of("student", scores, speed)
    for one in distilled.JUDGES:
        assert row[f"{one} kept"] == pytest.approx(0.8)
        # The same gain at every prompt: an interval of no width.
        assert row[f"{one} gain"] == pytest.approx(0.4) and row[f"{one} 95 %"] == "+0.40 +0.40"
    assert row["speed / plain"] == 0.97
    assert distilled.row_of("plain", scores, speed)["vader kept"] == 0


def test_both_guides_choose_alike() -> None:
    ways = distilled.methods()
    assert list(ways) == ["plain", "value", "next"]
    value, student = ways["value"], ways["next"]
    assert (value.signal, student.signal) == ("reward", "next")
    same = ("top_k", "weight", "temperature")
    assert [getattr(value, n) for n in same] == [getattr(student, n) for n in same]
    assert ways["plain"].top_k == value.top_k and ways["plain"].temperature == value.temperature
