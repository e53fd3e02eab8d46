"""L0: what a request may ask vLLM for; needs no vLLM."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from otter_export.errors import RequestError
from otter_export.plugins.vllm.bases import CLASSES, architecture_of, base_architecture
from otter_export.plugins.vllm.guidance import Guidance
from otter_export.plugins.vllm.registration import unsupported
from otter_export.signals import Signal
from tests import tiny

SIGNALS = (tiny.REWARD, tiny.NEXT, tiny.TONE, tiny.DRAFTS)
_VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.lists(st.text()),
    st.binary(),
)


def test_nothing_asked_for_changes_nothing() -> None:
    guidance = Guidance.of(None)
    assert guidance == Guidance.of({"of_another": 1}) == Guidance()
    assert guidance.named_weights(SIGNALS) == {"reward": 0.0}
    guidance.check(SIGNALS, 0)


def test_http_and_python_ask_alike() -> None:
    """Over HTTP there are texts, numbers and lists of these."""
    http = {"otter_weights": ["next=2", "tone=0.5"], "otter_minimum": ["next=0.1"]}
    python = {"otter_weights": {"next": 2, "tone": 0.5}, "otter_minimum": {"next": 0.1}}
    assert Guidance.of(http) == Guidance.of(python)
    assert Guidance.of({"otter_rewards": 1.0}).rewards is True
    assert Guidance.of({"otter_top_k": 0}).top_k is None


def test_experts_are_the_reward_only_where_there_is_no_other() -> None:
    assert Guidance().named_weights((tiny.TONE, tiny.NEXT)) == {"next": 0.0}
    assert Guidance().named_weights((tiny.TONE,)) == {"tone": 0.0}


@pytest.mark.parametrize(
    ("arguments", "candidates", "message"),
    [
        ({"otter_signal": "drafts"}, 8, "no reward 'drafts'; its rewards: reward, next, tone"),
        ({"otter_weight": 1}, 0, "guidance by reward scores candidates"),
        ({"otter_weight": 1, "otter_top_k": 9}, 8, "otter_top_k must be from 1 to 8"),
        ({"otter_weight": 1, "otter_top_k": 0}, 8, "otter_top_k must be from 1 to 8"),
        ({"otter_weights": {"next": 1}, "otter_minimum": {"reward": 0}}, 0, "scores candidates"),
    ],
)
def test_what_an_engine_cannot_do(arguments: dict[str, Any], candidates: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Guidance.of(arguments).check(SIGNALS, candidates)


def test_a_value_without_weight_needs_no_candidates() -> None:
    Guidance.of({"otter_signal": "reward", "otter_rewards": 1, "otter_top_k": 50}).check(SIGNALS, 0)


@hypothesis.given(
    st.dictionaries(
        st.sampled_from(["weight", "signal", "weights", "top_k", "top_p", "gate", "minimum", "x"]),
        _VALUES,
    )
)
def test_anything_is_taken_or_refused_in_one_line(arguments: dict[str, Any]) -> None:
    """What would raise in a worker would end vLLM's engine."""
    given = {f"otter_{name}": value for name, value in arguments.items()}
    try:
        guidance = Guidance.of(given)
        guidance.check(SIGNALS, 8)
    except RequestError as error:
        assert "\n" not in str(error)
        return
    assert Guidance.of(given) == guidance


def test_every_class_has_a_line() -> None:
    for family, name in CLASSES.items():
        assert base_architecture(architecture_of(family, "config.json")) == name


def test_versions() -> None:
    assert not unsupported("0.32.0")
    assert "supports vLLM 0.32.*, and this is 0.33.1" in unsupported("0.33.1")
    assert unsupported("dev")


def test_the_names_are_those_of_signals() -> None:
    assert Guidance.of({"otter_signal": "a"}).named_weights((Signal("a"),)) == {"a": 0.0}
