"""L4: drafts beside sums of signals, minimums, penalties and experts: the same text, all of it."""

from __future__ import annotations

import dataclasses

from hypothesis import given, settings
from hypothesis import strategies as st

from otter_export import Experts, Penalties, Request, Result, generate
from tests.runtime.drafts.knowing import knowing
from tests.runtime.scheduler.test_guidance import REQUESTS, fake


def told(result: Result) -> Result:
    """Without what drafts may change."""
    return dataclasses.replace(result, forwards=0, seconds=0, drafted=None, accepted=None)


@settings(max_examples=60, deadline=None)
@given(REQUESTS, st.integers(0, 99))
def test_right_drafts_and_wrong_ones_change_no_token(request: Request, seed: int) -> None:
    request = dataclasses.replace(request, max_tokens=12, drafts="none")
    plain = generate(fake(), request)[0]
    with knowing(fake(), request, seed):
        drafted = generate(fake(), dataclasses.replace(request, drafts="lookup"))[0]
    assert told(drafted) == told(plain)


def test_right_drafts_save_passes_of_guided_text() -> None:
    penalties = Penalties(repetition_penalty=1.3, frequency_penalty=0.5, min_tokens=40)
    method = Experts(weight=2.0, temperature=1.0)
    request = Request([1, 2], method, 40, seed=3, penalties=penalties)
    plain = generate(fake(), request)[0]
    with knowing(fake(), request, 0, always=True):
        drafted = generate(fake(), dataclasses.replace(request, drafts="lookup"))[0]
    assert told(drafted) == told(plain)
    assert drafted.forwards < plain.forwards / 4
