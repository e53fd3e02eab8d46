"""L4: drafts never change a token, whatever is drafted: on an engine whose answers show it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_export import ArgsGreedy, ArgsStochastic, Plain, Request, Result, TokenEvent
from otter_export.errors import OtterError
from otter_export.runtime.methods.base import DecodingMethod
from otter_export.runtime.scheduler import Limits, Scheduler
from otter_export.signals import Signal
from tests.runtime.drafts.knowing import knowing
from tests.runtime.fake_engine import FakeEngine, make_manifest

VALUE = Signal("reward")
Q_VALUE = Signal("future", kind="q_value")
UNBOUNDED = Signal("reward", activation="identity", bounds=None)
MEDUSA = Signal("ahead", "medusa", "identity", None, heads=3)
REDUCED = Signal("few", "medusa", "identity", None, heads=2, draft_vocab=5)

METHODS: tuple[DecodingMethod, ...] = (
    Plain(),
    Plain(temperature=0.7),
    ArgsGreedy(top_k=5, weight=2.0),
    ArgsGreedy(top_k=6, weight=-1.0, prune=False),
    ArgsGreedy(top_k=4, weight=1.0, gate=1.2),
    ArgsStochastic(top_k=5, weight=1.5, temperature=0.8),
)
PROMPTS = st.lists(st.integers(1, 15), min_size=1, max_size=12)


def small(signal: Signal = VALUE, length: int = 64) -> FakeEngine:
    """16 tokens: hits, stop words and end-of-sequence tokens are common."""
    signals = (signal, MEDUSA, REDUCED)
    manifest = make_manifest(vocab_size=16, signals=signals, max_sequence_length=length)
    return FakeEngine(manifest, spread=1.0)


def run(
    engine: FakeEngine, requests: Sequence[Request]
) -> list[tuple[Result | OtterError, list[TokenEvent]]]:
    """All in one scheduler; what each request heard."""
    heard: list[list[object]] = [[] for _ in requests]
    scheduler = Scheduler(engine, Limits(max_batch_size=4))
    for request, events in zip(requests, heard, strict=True):
        scheduler.submit(request, on_event=events.append)
    while scheduler.step():
        pass
    return [(events[-1], events[:-1]) for events in heard]  # type: ignore[misc]


def told(result: Result) -> Result:
    """A result without what drafts may change."""
    return dataclasses.replace(result, request=0, seconds=0, forwards=0, drafted=0, accepted=0)


def untimed(events: Sequence[TokenEvent]) -> list[TokenEvent]:
    return [dataclasses.replace(event, request=0) for event in events]


def check_same(engine: FakeEngine, request: Request, others: Sequence[Request] = ()) -> Result:
    """With the request's drafts and without: the same tokens, candidates, texts and end."""
    plain, events = run(engine, [dataclasses.replace(request, drafts="none")])[0]
    drafted, with_drafts = run(engine, [request, *others])[0]
    assert isinstance(plain, Result)
    assert isinstance(drafted, Result)
    assert untimed(with_drafts) == untimed(events)
    assert told(drafted) == told(plain)
    saved = plain.forwards - drafted.forwards
    # Where a candidate that was drafted is found not to be enough, a pass is saved without it.
    assert saved >= (drafted.accepted or 0) if request.method.prunes else saved == drafted.accepted
    assert 0 <= (drafted.accepted or 0) <= (drafted.drafted or 0)
    return drafted


@settings(max_examples=40)
@given(
    PROMPTS,
    st.sampled_from(METHODS),
    st.sampled_from([VALUE, Q_VALUE, UNBOUNDED]),
    st.sampled_from(["lookup", "ahead", "few", "auto"]),
    st.integers(0, 1000),
    st.sampled_from([(), ("\x05",), ("\x03\x07", "\x0b")]),
    st.integers(1, 24),
    st.integers(16, 32),
)
def test_drafts_change_no_token(
    prompt: list[int],
    method: DecodingMethod,
    signal: Signal,
    drafts: str,
    seed: int,
    stop: tuple[str, ...],
    max_tokens: int,
    length: int,
) -> None:
    request = Request(prompt, method, max_tokens, stop, seed, drafts=drafts)
    check_same(small(signal, length), request)


@settings(max_examples=40)
@given(
    PROMPTS,
    st.sampled_from(METHODS),
    st.sampled_from([VALUE, Q_VALUE, UNBOUNDED]),
    st.integers(0, 1000),
    st.booleans(),
    st.integers(1, 24),
)
def test_any_tree_of_drafts_changes_no_token(
    prompt: list[int],
    method: DecodingMethod,
    signal: Signal,
    seed: int,
    even: bool,
    max_tokens: int,
) -> None:
    engine = small(signal)
    engine.even_steps = even
    request = Request(prompt, method, max_tokens, (), seed, drafts="lookup")
    with knowing(engine, request, seed):
        check_same(engine, request)


def test_what_is_known_before_is_mostly_accepted() -> None:
    """The test above would say little if its drafts were refused."""
    engine = small()
    engine.manifest = dataclasses.replace(engine.manifest, eos_token_ids=())
    request = Request([3, 1], Plain(temperature=1.0), 40, (), 7, drafts="lookup")
    with knowing(engine, request, 1):
        result = check_same(engine, request)
    assert result.accepted is not None
    assert result.accepted > 10
    assert result.forwards < 30


def test_lookup_follows_a_text_that_repeats_itself() -> None:
    engine = FakeEngine(
        make_manifest(), script={place: 1 + (place + 1) % 5 for place in range(128)}
    )
    request = Request([1, 2, 3, 4, 5, 1, 2], Plain(), 64, drafts="lookup")
    result = check_same(engine, request)
    assert result.accepted == result.drafted
    # Eight tokens a pass: the winner and seven drafts.
    assert result.forwards == 64 / 8
    assert {width for _, width in engine.calls[-8:]} == {8}


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.booleans())
def test_nor_in_a_crowd(seed: int, even: bool) -> None:
    draw = random.Random(seed)

    def some(drafts: str) -> Request:
        prompt = [draw.randrange(1, 16) for _ in range(draw.randrange(1, 12))]
        return Request(prompt, draw.choice(METHODS), draw.randrange(1, 20), (), seed, drafts=drafts)

    names = ("none", "lookup", "ahead", "few", "auto")
    engine = small(draw.choice([VALUE, Q_VALUE]))
    engine.even_steps = even
    others = [some(draw.choice(names)) for _ in range(draw.randrange(1, 6))]
    check_same(engine, some(draw.choice(names[1:])), others)


@settings(max_examples=25)
@given(st.integers(0, 10_000))
def test_cancelling_others_changes_no_token(seed: int) -> None:
    draw = random.Random(seed)
    engine = small()
    requests = [
        Request(
            [draw.randrange(1, 16) for _ in range(6)],
            draw.choice(METHODS),
            20,
            (),
            seed + i,
            drafts=draw.choice(["lookup", "ahead", "auto", "none"]),
        )
        for i in range(4)
    ]
    alone = [run(engine, [r])[0] for r in requests]
    heard: list[list[object]] = [[] for _ in requests]
    scheduler = Scheduler(engine)
    handles = [
        scheduler.submit(request, on_event=events.append)
        for request, events in zip(requests, heard, strict=True)
    ]
    work = True
    while work:
        work = scheduler.step()
        if draw.random() < 0.2:
            scheduler.cancel(draw.choice(handles))
    for events, (result, expected) in zip(heard, alone, strict=True):
        if isinstance(events[-1], Result):
            assert isinstance(result, Result)
            assert told(events[-1]) == told(result)
        tokens = [event for event in events if isinstance(event, TokenEvent)]
        assert untimed(tokens) == untimed(expected)[: len(tokens)]


class Broken(FakeEngine):
    """Rewards are NaN behind a token."""

    def _signal(self, signal, kept):  # type: ignore[no-untyped-def]
        values = super()._signal(signal, kept)
        if signal.name == "reward":
            values[values > 0.93] = float("nan")
        return values


@pytest.mark.parametrize("seed", range(8))
def test_an_engine_that_fails_fails_at_the_same_token(seed: int) -> None:
    manifest = make_manifest(vocab_size=16, signals=(VALUE, MEDUSA), eos_token_ids=())
    engine = Broken(manifest, spread=1.0)
    request = Request([seed + 1, 2], Plain(), 40, (), 0, drafts="lookup")
    plain = run(engine, [dataclasses.replace(request, drafts="none")])[0]
    drafted = run(engine, [request])[0]
    assert str(drafted[0]) == str(plain[0]) or isinstance(plain[0], Result)
    assert untimed(drafted[1]) == untimed(plain[1])
