"""L4: several continuations of a prompt that is fed once: each as by itself, the best first."""

from __future__ import annotations

import dataclasses
import statistics
from typing import Any

import pytest

from otter_export import ArgsGreedy, ArgsStochastic, Plain, Request, best_of, generate
from otter_export.errors import RequestError
from otter_export.runtime.methods.base import DecodingMethod
from otter_export.signals import Signal
from tests.runtime.fake_engine import FakeEngine, make_manifest

PROMPT = [3, 1, 4] * 100


def fake(*signals: Signal) -> FakeEngine:
    signals = signals or (Signal("reward"),)
    return FakeEngine(make_manifest(vocab_size=16, signals=signals, max_sequence_length=400))


@pytest.mark.parametrize("rank", ["last", "mean"])
@pytest.mark.parametrize(
    "method",
    [Plain(temperature=1.0), ArgsStochastic(top_k=4), ArgsStochastic(top_k=3, gate=2.0)],
    ids=str,
)
def test_each_is_the_one_of_its_seed_and_the_best_comes_first(
    method: DecodingMethod, rank: str
) -> None:
    engine = fake()
    request = Request(PROMPT, method, max_tokens=6, seed=2**64 - 3)
    # More than are decoded at a time.
    results = best_of(engine, request, 40, rank=rank)
    # The prompt of 300 tokens is fed once, in two chunks.
    assert [width for _, width in engine.calls if width > 16] == [256, 44]
    seeds = [(2**64 - 3 + i) % 2**64 for i in range(40)]
    alone = generate(fake(), [dataclasses.replace(request, seed=seed) for seed in seeds])
    for result in results:
        found = dataclasses.replace(result, seconds=0)
        assert found == dataclasses.replace(alone[result.request], seconds=0)
    worth = [r.rewards[-1] if rank == "last" else statistics.fmean(r.rewards) for r in results]
    assert worth == sorted(worth, reverse=True)
    assert sorted(r.request for r in results) == list(range(40))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r: best_of(fake(), r, 0), "count must be an integer of at least 1, got 0"),
        (lambda r: best_of(fake(), r, 2, rank="sum"), "rank must be one of last, mean, got 'sum'"),
        (lambda r: best_of(fake(), r, 2, rank=["last"]), "rank must be one of last, mean, got "),
        (
            lambda r: best_of(fake(), dataclasses.replace(r, method=ArgsGreedy()), 2),
            "method args-greedy draws nothing as it is, so that all 2 continuations would be alike",
        ),
        (lambda r: best_of(fake(), "text", 2), "request must be a Request, got 'text'"),
        (
            lambda r: best_of(fake(Signal("drafts", kind="medusa")), r, 2),
            "no signal that scores tokens, to rank texts by",
        ),
    ],
)
def test_wrong_arguments_are_one_line(call: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        call(Request([1], Plain(temperature=1.0), max_tokens=2))
