"""L0: which ways to decode are compared, and what they are called."""

from __future__ import annotations

import pytest

from otter_export.errors import OtterError
from otter_export.evaluation.ways import make_ways
from otter_export.runtime.methods.args_greedy import ArgsGreedy
from otter_export.runtime.methods.experts import Experts
from otter_export.runtime.methods.plain import Plain


def test_every_method_with_every_weight_and_number_of_candidates() -> None:
    ways = make_ways(["plain", "args-greedy"], [-2, 0.5], [4, 8], {"gate": 1.0})
    assert ways == {
        "plain": Plain(),
        **{
            f"args-greedy, k {k}, weight {w:g}": ArgsGreedy(top_k=k, weight=w, gate=1.0)
            for k in (4, 8)
            for w in (-2, 0.5)
        },
    }
    assert next(iter(ways)) == "plain"


def test_plain_sampling_has_a_number_of_candidates_and_greedy_has_none() -> None:
    ways = make_ways(["plain"], [1, 2], [4, 8], {"temperature": 0.7})
    assert ways == {f"plain, k {k}": Plain(temperature=0.7, top_k=k) for k in (4, 8)}


def test_what_is_not_given_is_the_methods_own() -> None:
    ways = make_ways(["experts", "args-greedy"])
    assert list(ways.values()) == [Experts(), ArgsGreedy()]


@pytest.mark.parametrize(
    ("names", "options", "error"),
    [
        (["plain", "best"], {}, "unknown method 'best'.*known: args-greedy"),
        (["plain"], {"gate": 1.0}, "none of the methods plain has an option gate"),
        (["args-greedy"], {"gate": -1.0}, "gate must be a finite number at least 0, got -1.0"),
    ],
)
def test_what_no_method_takes_is_refused(
    names: list[str], options: dict[str, float], error: str
) -> None:
    with pytest.raises(OtterError, match=error):
        make_ways(names, options=options)
