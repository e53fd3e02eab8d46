"""L4: penalties and bans on logits, against Hugging Face's and against their definitions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export import Penalties
from otter_export.errors import RequestError

VOCAB = 12
TOKENS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=20)
SEEDS = st.integers(0, 2**32)


def logits_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(VOCAB).astype(np.float32) * 3


@given(SEEDS, TOKENS, st.integers(1, 20))
def test_without_values_nothing_changes(seed: int, history: list[int], prompt: int) -> None:
    logits = logits_of(seed)
    assert Penalties().apply(logits, history, prompt, (0,)) is logits


def test_repetition_is_that_of_transformers() -> None:
    torch = pytest.importorskip("torch")
    process = pytest.importorskip("transformers.generation.logits_process")
    for seed, factor in ((0, 1.3), (1, 0.5), (2, 50.0)):
        logits, history = logits_of(seed), [3, 3, 7, 0, 11]
        theirs = process.RepetitionPenaltyLogitsProcessor(factor)
        expected = theirs(torch.tensor([history]), torch.tensor(logits[None]))[0].numpy()
        found = Penalties(repetition_penalty=factor).apply(logits, history, 2, ())
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(logits, logits_of(seed))


@given(SEEDS, TOKENS, TOKENS, st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency_count_generated_tokens(
    seed: int, prompt: list[int], text: list[int], presence: float, frequency: float
) -> None:
    penalties = Penalties(presence_penalty=presence, frequency_penalty=frequency)
    logits = logits_of(seed)
    found = penalties.apply(logits, [*prompt, *text], len(prompt), ())
    for token in range(VOCAB):
        times = text.count(token)
        expected = float(logits[token]) - times * frequency - (times > 0) * presence
        # One rounding to float32 of a number below 100.
        assert found[token] == pytest.approx(expected, abs=1e-5)


def test_bans_hold_unless_they_leave_nothing() -> None:
    logits = logits_of(0)
    found = Penalties(banned_tokens=(1, 4), min_tokens=3).apply(logits, [5, 6, 7], 1, (0, 2))
    assert np.flatnonzero(found == -np.inf).tolist() == [0, 1, 2, 4]
    late = Penalties(banned_tokens=(1, 4), min_tokens=2).apply(logits, [5, 6, 7], 1, (0, 2))
    assert np.flatnonzero(late == -np.inf).tolist() == [1, 4]
    everything = Penalties(banned_tokens=tuple(range(VOCAB)), presence_penalty=1.0)
    assert np.isfinite(everything.apply(logits, [5, 6], 1, ())).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetition_penalty": 0}, "repetition_penalty must be a finite number at least 0.01"),
        ({"repetition_penalty": math.nan}, "repetition_penalty must be a finite number"),
        ({"presence_penalty": 2.1}, "presence_penalty must be a finite number at least -2 and at"),
        ({"frequency_penalty": "1"}, "frequency_penalty must be a finite number"),
        ({"banned_tokens": [1.5]}, "banned_tokens must be token ids, 0 or more each, got [1.5]"),
        ({"banned_tokens": 3}, "banned_tokens must be token ids, 0 or more each, got 3"),
        ({"banned_tokens": [-1]}, "banned_tokens must be token ids, 0 or more each"),
        ({"min_tokens": -1}, "min_tokens must be an integer of at least 0, got -1"),
    ],
)
def test_wrong_values_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        Penalties(**options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_of_numpy_are_as_good_as_pythons() -> None:
    found = Penalties(banned_tokens=np.array([3, 4]), min_tokens=np.int64(2))  # type: ignore[arg-type]
    assert found == Penalties(banned_tokens=(3, 4), min_tokens=2)
