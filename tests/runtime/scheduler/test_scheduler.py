"""L4: the scheduler on an engine without a model: who gets a place when, and how requests end."""

from __future__ import annotations

import dataclasses
import logging
import random
import time
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_export import ArgsGreedy, ArgsStochastic, Plain, Request, Result, TokenEvent, generate
from otter_export.errors import (
    CancelledError,
    DeadlineError,
    EngineError,
    OtterError,
    QueueFullError,
    RequestError,
)
from otter_export.runtime.methods.base import DecodingMethod
from otter_export.runtime.scheduler import Event, Limits, Observer, RequestHandle, Scheduler, decode
from tests.runtime.fake_engine import FakeEngine, make_manifest

METHODS: list[DecodingMethod] = [
    ArgsGreedy(top_k=6, weight=2.0),
    ArgsGreedy(top_k=3, weight=-2.0),
    ArgsStochastic(top_k=5, weight=1.0, temperature=0.7),
    Plain(),
    Plain(temperature=1.5),
]


def small(**options: object) -> FakeEngine:
    return FakeEngine(make_manifest(vocab_size=16, **options))  # type: ignore[arg-type]


def endless(**options: object) -> FakeEngine:
    """Never ends a sequence by itself."""
    return small(eos_token_ids=(), **options)


class Client:
    """Submits requests and keeps what they hear."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.events: dict[RequestHandle, list[Event]] = {}

    def submit(self, request: Request, **options: object) -> RequestHandle:
        events: list[Event] = []
        handle = self.scheduler.submit(request, on_event=events.append, **options)  # type: ignore[arg-type]
        self.events[handle] = events
        return handle

    def last(self, handle: RequestHandle) -> Event:
        """The last event; checks that it is the only one that ends the request."""
        assert handle.ended
        *tokens, last = self.events[handle]
        assert all(isinstance(event, TokenEvent) for event in tokens)
        assert isinstance(last, Result | OtterError)
        if isinstance(last, Result):
            assert [t.token_id for t in tokens] == list(last.token_ids)  # type: ignore[union-attr]
        return last

    def tokens(self, handle: RequestHandle) -> int:
        return sum(isinstance(event, TokenEvent) for event in self.events[handle])


def run(scheduler: Scheduler, rounds: int = 10_000) -> int:
    """Rounds until nothing is left."""
    for count in range(1, rounds + 1):
        if not scheduler.step():
            assert scheduler.stats.queued == 0
            return count
    raise AssertionError("work remains")


def same(a: Event, b: Event) -> bool:
    assert isinstance(a, Result) and isinstance(b, Result)
    same_but = {"request": 0, "seconds": 0}
    return dataclasses.replace(a, **same_but) == dataclasses.replace(b, **same_but)


REQUESTS = st.builds(
    Request,
    st.lists(st.integers(1, 15), min_size=1, max_size=70),
    st.sampled_from(METHODS),
    max_tokens=st.integers(1, 9),
    seed=st.integers(0, 99),
)
LIMITS = st.builds(
    Limits,
    max_batch_size=st.integers(1, 5),
    prefill_tokens=st.integers(1, 64),
    cache_tokens=st.one_of(st.none(), st.integers(80, 200)),
)


@settings(max_examples=20)
@given(
    st.lists(st.tuples(st.integers(0, 6), REQUESTS), min_size=1, max_size=12),
    LIMITS,
    st.sampled_from([0, 4, decode.PASS_ROWS]),
)
def test_whoever_arrives_when_gets_the_same_as_alone_and_in_order(
    arrivals: list[tuple[int, Request]], limits: Limits, pass_rows: int
) -> None:
    """No request starves, whatever the limits, and none sees its neighbours."""
    with pytest.MonkeyPatch.context() as patch:
        # Small ones let requests move between batches all the time.
        patch.setattr(decode, "PASS_ROWS", pass_rows)
        _check_arrivals(arrivals, limits)


def _check_arrivals(arrivals: list[tuple[int, Request]], limits: Limits) -> None:
    order = Recorder()
    engine = small()
    scheduler = Scheduler(engine, limits, [order])
    client = Client(scheduler)
    handles = []
    for rounds, request in arrivals:
        for _ in range(rounds):
            scheduler.step()
        handles.append(client.submit(request))
    run(scheduler)
    for handle, (_, request) in zip(handles, arrivals, strict=True):
        alone = generate(small(), request)[0]
        assert same(client.last(handle), alone)
    assert order.admitted_numbers == sorted(order.admitted_numbers)
    assert len(order.admitted_numbers) == len(arrivals)
    assert max(b for b, _ in engine.calls) <= limits.max_batch_size


@given(st.lists(st.integers(1, 9), max_size=20), st.booleans())
def test_the_narrow_width_saves_the_most_rows(widths: list[int], even: bool) -> None:
    widest = max(widths, default=0)
    widest += widest % 2 if even else 0
    few = decode.narrow_width(widths, even=even)
    apart = [w for w in range(1, widest) if not (even and w % 2)]
    costs = {w: sum(w if width <= w else widest for width in widths) for w in apart}
    together = len(widths) * widest
    if few:
        assert costs[few] == min(costs.values()) < together - decode.PASS_ROWS
    else:
        assert all(cost >= together - decode.PASS_ROWS for cost in costs.values())


def test_requests_with_few_candidates_left_decode_apart_if_it_pays() -> None:
    """Eight candidates are left in every step of one request, and one in those of the others."""
    engine = FakeEngine(
        make_manifest(eos_token_ids=()), spread=2.0, script=dict.fromkeys(range(99), 7)
    )
    client = Client(Scheduler(engine))

    def decode_with(others: int) -> list[tuple[int, int]]:
        engine.calls.clear()
        for prune in (False, *[True] * others):
            method = ArgsGreedy(top_k=8, weight=0.1, prune=prune)
            client.submit(Request([3, 4], method, max_tokens=4))
        run(client.scheduler)
        return engine.calls[1:]

    assert decode_with(others=9) == [(9, 2), (1, 8)] * 4
    # Two of them are not worth a pass of their own.
    assert decode_with(others=2) == [(3, 8)] * 4
    # Where any number of rows will do, they have one each; beside plain decoding the pass is there.
    engine.even_steps = False
    assert decode_with(others=9) == [(9, 1), (1, 8)] * 4


def test_one_candidate_left_decodes_with_plain_requests_where_rows_are_alike() -> None:
    engine = FakeEngine(
        make_manifest(eos_token_ids=()), spread=2.0, script=dict.fromkeys(range(99), 7)
    )

    def decoded(even_steps: bool) -> list[tuple[int, int]]:
        engine.even_steps = even_steps
        engine.calls.clear()
        client = Client(Scheduler(engine))
        for method in (Plain(), ArgsGreedy(top_k=8, weight=0.1)):
            client.submit(Request([3, 4], method, max_tokens=2))
        run(client.scheduler)
        return engine.calls[1:]

    assert decoded(even_steps=True) == [(1, 1), (1, 2)] * 2
    assert decoded(even_steps=False) == [(2, 1)] * 2


class Recorder(Observer):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[object, ...]] = []

    @property
    def admitted_numbers(self) -> list[int]:
        return [t.number for name, t, *_ in self.told if name == "admitted"]  # type: ignore[attr-defined]

    def submitted(self, *told: object) -> None:
        self.told.append(("submitted", *told))

    def rejected(self, *told: object) -> None:
        self.told.append(("rejected", *told))

    def admitted(self, *told: object) -> None:
        self.told.append(("admitted", *told))

    def token(self, *told: object) -> None:
        self.told.append(("token", *told))

    def ended(self, *told: object) -> None:
        self.told.append(("ended", *told))

    def step(self, *told: object) -> None:
        self.told.append(("step", *told))


def test_a_large_request_is_not_passed_by_small_ones_for_ever() -> None:
    """It needs the whole cache; small ones that come later wait until it had its turn."""
    scheduler = Scheduler(endless(), Limits(max_batch_size=8, cache_tokens=100))
    client = Client(scheduler)
    client.submit(Request([1], max_tokens=9))
    scheduler.step()
    large = client.submit(Request([1] * 50, max_tokens=50))
    later = []
    for _ in range(20):
        later.append(client.submit(Request([2], max_tokens=4)))
        scheduler.step()
    assert large.state == "running"
    assert all(handle.state == "queued" for handle in later)
    run(scheduler)
    assert all(isinstance(client.last(t), Result) for t in [large, *later])


def test_a_long_prompt_does_not_stall_those_that_run() -> None:
    engine = endless(max_sequence_length=2000)
    scheduler = Scheduler(engine, Limits(prefill_tokens=64))
    client = Client(scheduler)
    running = client.submit(Request([1], Plain(), max_tokens=60))
    scheduler.step()
    long = client.submit(Request([3] * 1000, Plain(), max_tokens=5))
    engine.calls.clear()
    for count in range(1, 17):
        scheduler.step()
        # One chunk and one step each round: the runner gets its token in every one.
        assert client.tokens(running) == 1 + count
        assert long.state == ("prefilling" if count < 16 else "running")
    assert [call for call in engine.calls if call[1] > 1] == [(1, 64)] * 15 + [(1, 40)]


def test_a_short_prompt_does_not_wait_for_a_long_one() -> None:
    scheduler = Scheduler(endless(max_sequence_length=2000), Limits(prefill_tokens=64))
    client = Client(scheduler)
    long = client.submit(Request([3] * 1000, Plain(), max_tokens=2))
    scheduler.step()
    short = client.submit(Request([1], Plain(), max_tokens=2))
    scheduler.step()
    scheduler.step()
    assert (short.state, long.state) == ("running", "prefilling")
    run(scheduler)
    assert isinstance(client.last(long), Result)


def test_short_prompts_share_a_pass() -> None:
    engine = endless()
    scheduler = Scheduler(engine, Limits(prefill_tokens=64))
    client = Client(scheduler)
    for size in (3, 16, 5, 40, 2, 1):
        client.submit(Request([1] * size, Plain(), max_tokens=1))
    assert run(scheduler) == 3
    # Four of 16, with padding, are 64 in all; of the two that are left, one is much longer.
    assert engine.calls == [(4, 16), (4, 1), (1, 40), (1, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize("rounds", range(9))
def test_cancelling_frees_the_place_before_the_next_step(rounds: int) -> None:
    """Queued, in the middle of the prompt, running, or just ended."""
    engine = endless(max_sequence_length=400)
    scheduler = Scheduler(engine, Limits(max_batch_size=1, prefill_tokens=16))
    client = Client(scheduler)
    handle = client.submit(Request([1] * 60, Plain(), max_tokens=4))
    waiting = client.submit(Request([2], Plain(), max_tokens=1))
    for _ in range(rounds):
        scheduler.step()
    states = ["queued", *["prefilling"] * 3, *["running"] * 3, "ended", "ended"]
    assert handle.state == states[rounds]
    scheduler.cancel(handle)
    engine.calls.clear()
    scheduler.step()
    assert isinstance(client.last(handle), Result if rounds > 6 else CancelledError)
    # The place was taken by the other at once, and nothing was spent on this one.
    if rounds < 7:
        assert isinstance(client.last(waiting), Result)
        assert engine.calls == [(1, 1), (1, 1)]
    run(scheduler)
    assert scheduler.stats.cancelled == (rounds < 7)


def test_a_callback_may_cancel_its_own_request() -> None:
    scheduler = Scheduler(endless())
    events: list[Event] = []

    def take(event: Event) -> None:
        events.append(event)
        if len(events) == 3:
            scheduler.cancel(handle)

    handle = scheduler.submit(Request([1], max_tokens=50), on_event=take)
    run(scheduler)
    assert [type(e) for e in events] == [TokenEvent] * 3 + [CancelledError]


class Clock:
    """A clock that goes on by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.mark.parametrize("rounds", [0, 1, 2, 4])
def test_a_deadline_ends_a_request_wherever_it_is(
    rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    scheduler = Scheduler(endless(), Limits(prefill_tokens=16))
    client = Client(scheduler)
    handle = client.submit(Request([1] * 30, Plain(), max_tokens=9), deadline_seconds=2.5)
    for _ in range(rounds):
        scheduler.step()
    clock.now += 2.4
    assert not handle.ended
    clock.now += 0.2
    assert not scheduler.step()
    last = client.last(handle)
    assert isinstance(last, DeadlineError)
    assert str(last) == f"the request's 2.5 seconds were over after {max(0, rounds - 1)} tokens"
    assert scheduler.stats.expired == 1


def test_a_request_within_its_deadline_is_not_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch)
    scheduler = Scheduler(endless())
    client = Client(scheduler)
    handle = client.submit(Request([1], max_tokens=5), deadline_seconds=0.001)
    run(scheduler)
    assert isinstance(client.last(handle), Result)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "1"])
def test_a_deadline_is_a_positive_number(seconds: object) -> None:
    client = Client(Scheduler(small()))
    with pytest.raises(RequestError, match="deadline_seconds must be a finite number above 0"):
        client.submit(Request([1]), deadline_seconds=seconds)


def test_a_full_queue_refuses_at_once_and_takes_again() -> None:
    scheduler = Scheduler(endless(), Limits(max_batch_size=1, max_queue=2))
    client = Client(scheduler)
    handles = [client.submit(Request([1], max_tokens=2)) for _ in range(2)]
    with pytest.raises(QueueFullError, match="2 requests wait already; try again later"):
        client.submit(Request([1]))
    scheduler.step()
    handles.append(client.submit(Request([1], max_tokens=2)))
    with pytest.raises(QueueFullError):
        client.submit(Request([1]))
    run(scheduler)
    assert all(isinstance(client.last(t), Result) for t in handles)
    assert (scheduler.stats.rejected, scheduler.stats.submitted) == (2, 3)


@pytest.mark.parametrize(
    ("limits", "request_", "message"),
    [
        (Limits(max_tokens=5), Request([1], max_tokens=6), "max_tokens may be at most 5 here"),
        (Limits(max_candidates=4), Request([1], ArgsGreedy(top_k=5)), "top_k may be at most 4"),
        (Limits(cache_tokens=20), Request([1] * 9, max_tokens=12), "together may be at most 20"),
        (Limits(), Request([99]), "the engine's vocabulary is 0 to 15"),
        (Limits(), Request([]), "the prompt is empty"),
        (Limits(), Request([1], ArgsGreedy(top_k=17)), "vocabulary size 16, got 17"),
    ],
)
def test_what_can_never_run_is_refused_at_once(
    limits: Limits, request_: Request, message: str
) -> None:
    recorder = Recorder()
    scheduler = Scheduler(small(), limits, [recorder])
    with pytest.raises(RequestError, match=message):
        scheduler.submit(request_, on_event=print, request_id="r1")
    assert not scheduler.step()
    assert recorder.told[0][:2] == ("rejected", "r1")


def test_plain_requests_have_no_candidates_to_limit() -> None:
    client = Client(Scheduler(small(), Limits(max_candidates=2)))
    client.submit(Request([1], Plain(temperature=1.0, top_k=9), max_tokens=1))
    client.submit(Request([1], ArgsGreedy(top_k=9, weight=0), max_tokens=1))
    run(client.scheduler)


@pytest.mark.parametrize(
    "wrong",
    [{"max_batch_size": 0}, {"max_queue": -1}, {"prefill_tokens": None}, {"max_tokens": 1.5}],
)
def test_wrong_limits(wrong: dict[str, int]) -> None:
    with pytest.raises(RequestError, match=f"{next(iter(wrong))} must be an integer of at least"):
        Limits(**wrong)


def test_the_limits_of_an_engine_with_fixed_sizes_count() -> None:
    options = {"max_batch_size": 4, "max_candidates": 8, "max_step": 48}
    manifest = dataclasses.replace(make_manifest(), options=options)
    found = Scheduler(FakeEngine(manifest), Limits(max_candidates=3)).limits
    assert (found.max_batch_size, found.max_candidates, found.prefill_tokens) == (4, 3, 48)


class Broken(FakeEngine):
    """Fails on demand: ``fails`` names a method, and how many of its calls still work."""

    def __init__(self, **options: object) -> None:
        super().__init__(make_manifest(vocab_size=16, eos_token_ids=()), **options)  # type: ignore[arg-type]
        self.fails: dict[str, int] = {}
        self.error: Exception = EngineError("out of memory")

    def _maybe(self, name: str) -> None:
        left = self.fails.get(name)
        if left is not None:
            self.fails[name] = left - 1
            if left <= 0:
                del self.fails[name]
                raise self.error

    def forward(self, *args):  # type: ignore[no-untyped-def]
        self._maybe("forward")
        return super().forward(*args)

    def commit(self, *args) -> None:  # type: ignore[no-untyped-def]
        self._maybe("commit")
        super().commit(*args)

    def append(self, *args) -> None:  # type: ignore[no-untyped-def]
        self._maybe("append")
        super().append(*args)

    def select(self, *args) -> None:  # type: ignore[no-untyped-def]
        self._maybe("select")
        super().select(*args)

    def new_cache(self, batch_size: int):  # type: ignore[no-untyped-def]
        self._maybe("new_cache")
        return super().new_cache(batch_size)


@pytest.mark.parametrize("error", [EngineError("out of memory"), MemoryError("12 GB"), KeyError(3)])
@pytest.mark.parametrize("method", ["forward", "commit", "append", "select", "new_cache"])
@pytest.mark.parametrize("calls", range(6))
def test_a_failing_engine_fails_those_concerned_and_goes_on(
    method: str,
    calls: int,
    error: Exception,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Requests move between batches whenever that saves a row.
    monkeypatch.setattr(decode, "PASS_ROWS", 0)
    engine = Broken()
    engine.fails[method], engine.error = calls, error
    scheduler = Scheduler(engine, Limits(max_batch_size=3))
    client = Client(scheduler)
    first = [client.submit(Request([i + 1], METHODS[i % 2], max_tokens=3 + i)) for i in range(5)]
    with caplog.at_level(logging.CRITICAL):
        run(scheduler)
    failed = [t for t in first if not isinstance(client.last(t), Result)]
    # Of a batch that everybody is leaving, a failure concerns nobody.
    assert bool(failed) == (method not in engine.fails) or (method == "select" and not failed)
    for handle in failed:
        message = str(client.last(handle))
        assert isinstance(client.last(handle), EngineError)
        assert message == "out of memory" or "the engine failed: " in message
    # Whoever comes afterwards is served as ever.
    engine.fails.clear()
    again = client.submit(Request([7, 8], METHODS[0], max_tokens=4, seed=1))
    run(scheduler)
    alone = generate(Broken(), Request([7, 8], METHODS[0], max_tokens=4, seed=1))[0]
    assert same(client.last(again), alone)
    stats = scheduler.stats
    assert stats.failed == len(failed)
    assert stats.submitted == stats.completed + stats.failed == 6


@pytest.mark.parametrize("method", ["forward", "commit", "append", "select", "new_cache"])
def test_nobody_is_lost_wherever_a_move_fails(
    method: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Gates and widths move sequences in nearly every step, while others come and go."""
    monkeypatch.setattr(decode, "PASS_ROWS", 0)
    for calls in range(24):
        engine = Broken(spread=1.5)
        engine.fails[method] = calls
        scheduler = Scheduler(engine, Limits(max_batch_size=6))
        client = Client(scheduler)
        handles = []
        for i in range(12):
            guided = ArgsGreedy(top_k=2 + i % 7, weight=1.0, gate=(0.0, 1.6, 2.0)[i % 3])
            handles.append(client.submit(Request([i + 1], guided, max_tokens=2 + i % 5)))
            scheduler.step()
        with caplog.at_level(logging.CRITICAL):
            run(scheduler)
        ends = [client.last(handle) for handle in handles]
        assert all(isinstance(end, Result | EngineError) for end in ends)
        assert sum(isinstance(end, Result) for end in ends) >= 6


@pytest.mark.parametrize("position", [0, 1, 3])
def test_one_answer_that_is_not_finite_fails_one_request(position: int) -> None:
    class OneNaN(FakeEngine):
        def forward(self, cache, input_ids, position_ids, *rest):  # type: ignore[no-untyped-def]
            step = super().forward(cache, input_ids, position_ids, *rest)
            for b, row in enumerate(input_ids):
                if 9 in row and position_ids[b, -1] == position:
                    step.logits[b] = np.nan
            return step

    engine = OneNaN(make_manifest(vocab_size=16, eos_token_ids=()), script={0: 9, 1: 9, 2: 9})
    client = Client(Scheduler(engine))
    bad = client.submit(Request([9], Plain(), max_tokens=6))
    good = client.submit(Request([3] * 20, Plain(), max_tokens=6))
    run(client.scheduler)
    assert "NaN" in str(client.last(bad))
    assert isinstance(client.last(good), Result)
    assert client.tokens(good) == 6


def test_a_callback_that_raises_ends_its_request_alone(caplog: pytest.LogCaptureFixture) -> None:
    scheduler = Scheduler(endless())
    client = Client(scheduler)
    heard: list[Event] = []

    def bad(event: Event) -> None:
        heard.append(event)
        raise ValueError("broken pipe")

    broken = scheduler.submit(Request([1], max_tokens=50), on_event=bad, request_id="r7")
    good = client.submit(Request([2], max_tokens=5))
    run(scheduler)
    assert isinstance(client.last(good), Result)
    assert broken.ended
    assert len(heard) == 1
    assert "request r7: on_event failed" in caplog.text


def test_an_observer_that_raises_is_logged_and_nothing_else(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Bad(Observer):
        def token(self, *told: object) -> None:
            raise ValueError("no such metric")

    client = Client(Scheduler(small(), observers=[Bad()]))
    handle = client.submit(Request([1], max_tokens=3))
    run(client.scheduler)
    assert isinstance(client.last(handle), Result)
    assert "the observer's token failed" in caplog.text


def test_the_observer_hears_of_everything_and_counts_add_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(monkeypatch)
    recorder = Recorder()
    scheduler = Scheduler(endless(), observers=[recorder])
    client = Client(scheduler)
    handle = client.submit(Request([1, 2], ArgsGreedy(top_k=4, prune=False), max_tokens=3))
    clock.now += 1.0
    for _ in range(3):
        scheduler.step()
        clock.now += 0.25
    names = [told[0] for told in recorder.told]
    one = ["token", "step"]
    assert names == ["submitted", "admitted", *one, *one, "token", "ended", "step"]
    admitted, *tokens = [told for told in recorder.told if told[0] in ("admitted", "token")]
    assert admitted == ("admitted", handle, 1.0)
    assert [(t[3], t[4]) for t in tokens] == [(1.0, True), (0.25, False), (0.25, False)]
    result = client.last(handle)
    assert isinstance(result, Result)
    ended = next(told for told in recorder.told if told[0] == "ended")
    assert ended == ("ended", handle, result, 1.5)
    stats = scheduler.stats
    assert recorder.told[-1][1] == stats
    assert dataclasses.replace(stats, reward_sum=0.0) == dataclasses.replace(
        type(stats)(),
        submitted=1,
        completed=1,
        prompt_tokens=2,
        tokens=3,
        forwards=4,
        candidates=12,
    )
    assert stats.mean_reward == pytest.approx(sum(result.rewards) / 3)
    assert type(stats)().mean_reward == 0


def test_nothing_leaks_over_many_requests_with_random_cancellation() -> None:
    """2,000 requests, cancelled, expired or left alone at random: every one ends, once."""
    generator = random.Random(5)
    engine = FakeEngine(make_manifest(vocab_size=4, max_sequence_length=90))
    scheduler = Scheduler(engine, Limits(max_batch_size=8, prefill_tokens=32, cache_tokens=400))
    client = Client(scheduler)
    live: list[RequestHandle] = []
    for number in range(2000):
        request = Request(
            [1] * generator.choice([1, 2, 5, 40]),
            generator.choice([Plain(), ArgsGreedy(top_k=3, weight=2.0), Plain(temperature=1.0)]),
            max_tokens=generator.randint(1, 6),
            seed=number,
        )
        expires = 1e-9 if generator.random() < 0.05 else None
        live.append(client.submit(request, deadline_seconds=expires))
        if generator.random() < 0.5:
            scheduler.cancel(generator.choice(live))
        if generator.random() < 0.6:
            scheduler.step()
        live = [handle for handle in live if not handle.ended]
    run(scheduler)
    assert len(client.events) == 2000
    outcomes = [type(client.last(handle)) for handle in client.events]
    stats = scheduler.stats
    assert outcomes.count(Result) == stats.completed > 500
    assert outcomes.count(CancelledError) == stats.cancelled > 300
    assert outcomes.count(DeadlineError) == stats.expired > 30
    assert stats.submitted == 2000 == stats.completed + stats.cancelled + stats.expired
    assert (stats.queued, stats.prefilling, stats.running) == (0, 0, 0)
    assert not len(scheduler._queue) and not len(scheduler._prefill)
    assert all(len(b._cache.lengths) == 0 for b in scheduler._decoder._batches)
    assert all(handle.sequence.cache is None for handle in client.events)


def test_the_engine_is_asked_for_no_more_than_the_cache_holds() -> None:
    """With cache_tokens, the batch times its longest request stays below it at every step."""
    seen: list[int] = []

    class Measured(FakeEngine):
        def forward(self, cache, input_ids, *rest):  # type: ignore[no-untyped-def]
            lengths = cache.lengths
            seen.append(len(lengths) * int(lengths.max() + 1))
            return super().forward(cache, input_ids, *rest)

    generator = random.Random(1)
    engine = Measured(make_manifest(vocab_size=8, eos_token_ids=()))
    client = Client(Scheduler(engine, Limits(cache_tokens=120)))
    requests = [
        Request([1] * generator.randint(1, 50), max_tokens=generator.randint(1, 40))
        for _ in range(30)
    ]
    handles = [client.submit(request) for request in requests]
    run(client.scheduler)
    assert all(isinstance(client.last(t), Result) for t in handles)
    assert 60 < max(seen) <= 120


def lengths(results: Sequence[Result]) -> list[int]:
    return [len(result.token_ids) for result in results]


def test_generate_raises_what_the_engine_raised() -> None:
    engine = Broken()
    engine.fails["forward"] = 2
    with pytest.raises(EngineError, match="out of memory"):
        generate(engine, [Request([1], max_tokens=5), Request([2], max_tokens=5)])
    assert lengths(generate(engine, [Request([1], max_tokens=5)])) == [5]
