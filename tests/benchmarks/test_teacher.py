"""L0: benchmarks/teacher.py says how much higher the teacher scores guided texts."""

from __future__ import annotations

import pytest

pytest.importorskip("matplotlib", reason="the demo's comparison draws")
teacher = pytest.importorskip("benchmarks.teacher", reason="the teacher needs 'train'")


def test_a_gain_has_an_interval_over_the_same_prompts() -> None:
    plain = [0.0, 0.5, 1.0, -0.5]
    row = teacher.row_of("weight +16", [score + 0.5 for score in plain], plain)
    # The same gain at every prompt: an interval of no width.
    assert (row["teacher's score"], row["over plain"]) == (0.75, 0.5)
    assert row["95 %"] == "+0.500 +0.500"
