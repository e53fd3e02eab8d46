"""L4: the comparison of tokens with and without drafts sees a difference."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from benchmarks import drafts_exact
from otter_export import Plain, Request, Result, generate
from otter_export.signals import Signal
from tests.runtime.fake_engine import FakeEngine, make_manifest

SIGNALS = (
    Signal("future", "q_value"),
    Signal("tilt", "expert", "identity", None),
    Signal("ahead", "medusa", "identity", None, heads=3),
)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(make_manifest(signals=SIGNALS), spread=1.0)


def test_every_row_local_method_of_the_engine(engine: FakeEngine) -> None:
    found = drafts_exact.methods(engine.manifest, 2.0)
    assert list(found) == ["greedy", "sampled", "guided by future", "experts tilt"]


def test_the_same_tokens_and_a_difference(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = ("one", "two", "three")

    def rows() -> list[Any]:
        return list(drafts_exact.compared(engine, prompts, Plain(), ["lookup", "ahead"], 6))

    assert [row["same"] for row in rows()] == ["3 of 3"] * 4

    def altered(engine: Any, requests: Sequence[Request], **options: Any) -> list[Result]:
        results = generate(engine, requests, **options)
        if requests[0].drafts == "ahead":
            tokens = (*results[1].token_ids[:2], -1, *results[1].token_ids[3:])
            results[1] = dataclasses.replace(results[1], token_ids=tokens)
        return results

    monkeypatch.setattr(drafts_exact, "generate", altered)
    found = rows()
    assert [row["same"] for row in found] == ["3 of 3"] * 2 + ["2 of 3"] * 2
    assert found[-1]["differs"] == [{"prompt": 1, "place": 2}]


@pytest.mark.parametrize(("other", "place"), [((1, 2), 2), ((1, 5, 3), 1)])
def test_where_two_texts_part(other: tuple[int, ...], place: int) -> None:
    assert drafts_exact._first_difference((1, 2, 3), other) == place
