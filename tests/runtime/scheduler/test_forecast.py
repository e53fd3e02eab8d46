"""L4: the forecast of rewards: always within their bounds, wider after a miss, back after hits."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export import ArgsGreedy
from otter_export.runtime.sampler import possible_winners
from otter_export.runtime.scheduler.forecast import Forecast

BOUNDS = st.sampled_from([(-1.0, 1.0), (0.0, 1.0), (-0.25, 0.5)])


@given(BOUNDS, st.floats(0, 1), st.lists(st.booleans(), max_size=50))
def test_it_holds_the_prefix_and_keeps_the_bounds(
    bounds: tuple[float, float], share: float, outcomes: list[bool]
) -> None:
    forecast = Forecast(bounds)
    for held in outcomes:
        forecast.learn(held)
    reward = min(bounds[0] + share * (bounds[1] - bounds[0]), bounds[1])
    low, high = forecast.around(reward)
    assert bounds[0] <= low <= reward <= high <= bounds[1]
    assert forecast.around(math.nan) == bounds


def test_misses_widen_it_up_to_the_bounds_and_hits_narrow_it_again() -> None:
    forecast = Forecast((-1.0, 1.0))
    first = forecast.around(0.0)
    assert first == pytest.approx((-0.1, 0.1))
    for _ in range(3):
        forecast.learn(held=False)
    assert forecast.around(0.0) == (-1.0, 1.0)
    for _ in range(1000):
        forecast.learn(held=True)
    assert forecast.around(0.0) == first


@given(
    st.lists(st.floats(-6, 6, width=32), min_size=1, max_size=10),
    st.floats(-8, 8),
    BOUNDS,
    st.floats(0, 1),
)
def test_what_is_expected_to_win_is_among_what_can(
    drawn: list[float], weight: float, bounds: tuple[float, float], share: float
) -> None:
    logits = np.array(sorted(drawn, reverse=True), np.float32)
    combine = ArgsGreedy(weight=weight).combine
    possible = possible_winners(combine, logits, bounds)
    reward = min(bounds[0] + share * (bounds[1] - bounds[0]), bounds[1])
    likely = possible_winners(combine, logits, bounds, Forecast(bounds).around(reward))
    assert likely[0]
    assert not (likely & ~possible).any()
    # Where nothing is known, both are the same.
    assert (possible_winners(combine, logits, bounds, bounds) == possible).all()
