"""L4: decoding methods as data and pure functions."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export import ArgsGreedy, ArgsStochastic, Experts, Plain
from otter_export.errors import OtterError, RequestError, UnsupportedError
from otter_export.runtime.methods import METHODS, make_method, method_options
from otter_export.runtime.methods.base import DecodingMethod

#: Every registered method has its case here; test_every_method_is_covered compares.
COVERED = {
    "args-greedy": ArgsGreedy,
    "args-stochastic": ArgsStochastic,
    "experts": Experts,
    "plain": Plain,
}


def test_every_method_is_covered() -> None:
    assert {name: METHODS.load(name) for name in METHODS} == COVERED


@pytest.mark.parametrize("name", COVERED)
def test_a_method_is_a_frozen_dataclass_under_its_own_name(name: str) -> None:
    method = make_method(name, {})
    assert method.name == name
    assert isinstance(method, DecodingMethod)
    with pytest.raises(dataclasses.FrozenInstanceError):
        method.signal = "other"  # type: ignore[misc]


@pytest.mark.parametrize("cls", [ArgsGreedy, ArgsStochastic, Experts])
def test_combine_adds_the_weighted_reward(cls: type[DecodingMethod]) -> None:
    method = cls(weight=2.0)  # type: ignore[call-arg]
    scores = method.combine(np.array([1.0, 2.0], np.float32), np.array([0.5, -1.0], np.float32))
    assert scores.dtype == np.float64
    assert scores.tolist() == [2.0, 0.0]


def test_plain_ignores_the_reward() -> None:
    logits = np.array([1.0, 2.0], np.float32)
    assert Plain().combine(logits, np.array([9.0, -9.0])).tolist() == [1.0, 2.0]


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_greedy_takes_the_first_of_the_best(scores: list[int]) -> None:
    generator = np.random.default_rng(0)
    chosen = ArgsGreedy().choose(np.array(scores, np.float64), generator)
    assert chosen == scores.index(max(scores))


@pytest.mark.parametrize(
    ("method", "needed"),
    [
        (ArgsGreedy(), True),
        (ArgsGreedy(weight=-1), True),
        (ArgsGreedy(weight=0), False),
        (ArgsGreedy(weight=0, prune=False), True),
        (ArgsGreedy(weight=0, minimum={"reward": 0.5}), True),
        (ArgsGreedy(weights={"reward": 0, "future": 1}), True),
        (ArgsGreedy(weights={"reward": 0, "future": 0}), False),
        (Experts(), True),
        (Experts(weight=0, temperature=1.0), False),
        (ArgsStochastic(), True),
        (ArgsStochastic(weight=0.0), False),
        (Plain(temperature=1.0), False),
    ],
)
def test_rewards_are_needed_only_if_they_can_change_the_choice(
    method: DecodingMethod, needed: bool
) -> None:
    assert method.needs_rewards is needed


WRONG = [
    ("args-greedy", {"top_k": 0}, "top_k must be an integer from 1"),
    ("args-greedy", {"top_k": -3}, "top_k must be an integer from 1"),
    ("args-greedy", {"top_k": 2.0}, "top_k must be an integer from 1"),
    ("args-greedy", {"top_k": True}, "top_k must be an integer from 1"),
    ("args-greedy", {"top_k": None}, "top_k must be an integer from 1"),
    ("args-greedy", {"weight": math.nan}, "weight must be a finite number, got nan"),
    ("args-greedy", {"weight": math.inf}, "weight must be a finite number, got inf"),
    ("args-greedy", {"weight": 10**400}, "weight must be a finite number"),
    ("args-greedy", {"weight": "2"}, "weight must be a finite number, got '2'"),
    ("args-greedy", {"weight": True}, "weight must be a finite number, got True"),
    ("args-greedy", {"gate": -0.1}, "gate must be a finite number at least 0, got -0.1"),
    ("args-greedy", {"gate": math.inf}, "gate must be a finite number at least 0, got inf"),
    ("args-stochastic", {"gate": math.nan}, "gate must be a finite number at least 0, got nan"),
    ("args-stochastic", {"gate": "1"}, "gate must be a finite number at least 0, got '1'"),
    ("args-stochastic", {"gate": True}, "gate must be a finite number at least 0, got True"),
    ("plain", {"gate": 1.0}, "has no option gate; its options: signal"),
    ("args-greedy", {"prune": 1}, "prune must be true or false"),
    ("args-greedy", {"signal": ""}, "signal must be the name"),
    ("args-greedy", {"temperature": 1.0}, "has no option temperature; its options: signal, top_k"),
    ("args-stochastic", {"temperature": 0}, "temperature must be a finite number above 0"),
    ("args-stochastic", {"temperature": -1}, "temperature must be a finite number above 0"),
    ("args-stochastic", {"top_p": 0}, "top_p must be a finite number above 0 and at most 1"),
    ("args-stochastic", {"top_p": 1.01}, "top_p must be a finite number above 0 and at most 1"),
    ("args-stochastic", {"signal": 3}, "signal must be the name"),
    ("args-greedy", {"weights": {}}, "weights must be a number for each of some names"),
    ("args-greedy", {"weights": {"": 1.0}}, "weights must be a number for each of some names"),
    ("args-greedy", {"weights": {"a": "b"}}, "weights of a must be a finite number, got 'b'"),
    ("args-greedy", {"weights": ["a"]}, "weights must be NAME=NUMBER, such as reward=1.5, got"),
    ("args-greedy", {"weights": ["a=x"]}, "weights of a must be a finite number, got 'x'"),
    ("args-greedy", {"weights": ["a=1", "a=2"]}, "weights has a name twice"),
    ("args-greedy", {"weights": 3}, "weights must be a number for each of some names"),
    ("args-greedy", {"weights": {"a": 1}, "weight": 2}, "leave signal and weight out"),
    ("args-greedy", {"weights": {"a": 1}, "signal": "a"}, "leave signal and weight out"),
    ("args-stochastic", {"minimum": {"a": math.nan}}, "minimum of a must be a finite number"),
    ("experts", {"top_k": 0}, "top_k must be an integer from 1"),
    ("experts", {"top_p": 0}, "top_p must be a finite number above 0 and at most 1"),
    ("experts", {"temperature": -1}, "temperature must be a finite number at least 0"),
    ("experts", {"prune": True}, "has no option prune"),
    ("plain", {"minimum": {"a": 1.0}}, "has no option minimum"),
    ("plain", {"weight": 1.0}, "has no option weight"),
    ("plain", {"temperature": -0.5}, "temperature must be a finite number at least 0"),
    ("plain", {"top_k": 0}, "top_k must be an integer from 1"),
    ("plain", {"top_p": math.nan}, "top_p must be a finite number above 0"),
]


@pytest.mark.parametrize(("name", "options", "message"), WRONG)
def test_wrong_options_are_one_clear_error(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        make_method(name, options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, OtterError)


def test_an_unknown_method_names_the_nearest() -> None:
    with pytest.raises(UnsupportedError, match=r"did you mean 'args-greedy'.*args-stochastic"):
        make_method("args-gready", {})


def test_the_page_lists_every_option_with_its_default(repository: Path) -> None:
    page = (repository / "docs" / "decoding.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)` \| (`.*`) \|$", page, re.MULTILINE))
    assert rows == {
        name: ", ".join(f"`{f.name}={f.default}`" for f in dataclasses.fields(METHODS.load(name)))
        for name in METHODS
    }


def test_options_are_listed_by_method() -> None:
    assert method_options("plain") == ("signal", "temperature", "top_k", "top_p")
