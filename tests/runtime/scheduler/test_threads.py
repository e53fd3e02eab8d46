"""L4: the scheduler on its own thread: submitting and cancelling from many, closing, no hangs.

Nothing here waits for a time to pass; the time limits only end a test that would hang.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import random
import threading
from collections.abc import Iterator

import pytest

from otter_export import ArgsGreedy, Plain, Request, Result, TokenEvent, generate
from otter_export.errors import (
    CancelledError,
    EngineError,
    OtterError,
    QueueFullError,
    RequestError,
)
from otter_export.runtime.scheduler import Event, Limits, RequestHandle, Scheduler
from otter_export.runtime.scheduler.decode import Decoder
from tests.runtime.fake_engine import FakeEngine, make_manifest

#: Seconds after which a test that hangs is ended.
PATIENCE = 60


def endless() -> FakeEngine:
    return FakeEngine(make_manifest(vocab_size=8, eos_token_ids=(), max_sequence_length=4000))


class Waiting:
    """Hears of one request and lets another thread wait for its end."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.ended = threading.Event()
        self.begun = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        self.begun.set()
        if not isinstance(event, TokenEvent):
            assert not self.ended.is_set(), "a request ends once"
            self.ended.set()

    def result(self) -> Event:
        assert self.ended.wait(PATIENCE), "the request did not end"
        return self.events[-1]


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    made = Scheduler(endless(), Limits(max_batch_size=4))
    made.start()
    yield made
    made.close(drain=False)


def test_many_threads_submit_and_cancel(scheduler: Scheduler) -> None:
    requests = [
        Request(
            [1 + i % 7], [Plain(temperature=1.0), ArgsGreedy(top_k=3)][i % 2], 4 + i % 9, seed=i
        )
        for i in range(120)
    ]
    heard = [Waiting() for _ in requests]
    handles: dict[int, RequestHandle] = {}

    def client(first: int) -> None:
        generator = random.Random(first)
        for i in range(first, len(requests), 8):
            handles[i] = scheduler.submit(requests[i], on_event=heard[i])
            assert scheduler.stats.running <= 4
            if generator.random() < 0.3:
                scheduler.cancel(handles[generator.choice(range(first, i + 1, 8))])

    threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    outcomes = [one.result() for one in heard]
    assert sum(isinstance(o, Result) for o in outcomes) > 60
    for request, outcome in zip(requests, outcomes, strict=True):
        if isinstance(outcome, Result):
            alone = generate(endless(), request)[0]
            assert dataclasses.replace(outcome, request=0, seconds=0) == dataclasses.replace(
                alone, request=0, seconds=0
            )
        else:
            assert isinstance(outcome, CancelledError)
    # The last answers were sent; the round that sent them may not be over.
    scheduler.close()
    stats = scheduler.stats
    assert stats.submitted == stats.completed + stats.cancelled == 120
    assert (stats.queued, stats.prefilling, stats.running) == (0, 0, 0)


def test_requests_wake_an_idle_scheduler(scheduler: Scheduler) -> None:
    for _ in range(3):
        heard = Waiting()
        scheduler.submit(Request([1], max_tokens=2), on_event=heard)
        assert isinstance(heard.result(), Result)


def test_cancelling_a_running_request_ends_it(scheduler: Scheduler) -> None:
    heard = Waiting()
    handle = scheduler.submit(Request([1], max_tokens=3000), on_event=heard)
    assert heard.begun.wait(PATIENCE)
    scheduler.cancel(handle)
    assert isinstance(heard.result(), CancelledError)
    assert handle.ended


def test_closing_with_drain_finishes_what_was_accepted() -> None:
    scheduler = Scheduler(endless(), Limits(max_batch_size=1))
    heard = [Waiting() for _ in range(4)]
    with scheduler:
        for one in heard:
            scheduler.submit(Request([1], max_tokens=5), on_event=one)
    assert all(isinstance(one.events[-1], Result) for one in heard)
    with pytest.raises(RequestError, match="the scheduler is closed"):
        scheduler.submit(Request([1]), on_event=Waiting())
    with pytest.raises(RequestError, match="closed"):
        scheduler.start()
    scheduler.close()


@pytest.mark.parametrize("options", [{"drain": False}, {"drain": True, "timeout": 0.01}])
@pytest.mark.parametrize("threaded", [True, False])
def test_closing_cancels_what_is_left(options: dict[str, object], threaded: bool) -> None:
    scheduler = Scheduler(endless(), Limits(max_batch_size=1))
    heard = [Waiting() for _ in range(3)]
    if threaded:
        scheduler.start()
    for one in heard:
        scheduler.submit(Request([1], max_tokens=3000), on_event=one)
    scheduler.close(**options)  # type: ignore[arg-type]
    assert all(isinstance(one.events[-1], CancelledError) for one in heard)
    assert not scheduler.step()


def test_leaving_the_block_by_an_error_cancels() -> None:
    heard = Waiting()
    with pytest.raises(KeyError), Scheduler(endless()) as scheduler:
        scheduler.submit(Request([1], max_tokens=3000), on_event=heard)
        raise KeyError
    assert isinstance(heard.events[-1], CancelledError)


@pytest.mark.parametrize("threaded", [True, False])
def test_a_callback_may_submit_and_close(threaded: bool) -> None:
    scheduler = Scheduler(endless())
    second = Waiting()
    refused: list[str] = []

    def first(event: Event) -> None:
        if isinstance(event, TokenEvent):
            return
        scheduler.submit(Request([2], max_tokens=2), on_event=second)
        scheduler.close()
        try:
            scheduler.submit(Request([3]), on_event=second)
        except RequestError as error:
            refused.append(str(error))

    scheduler.submit(Request([1], max_tokens=2), on_event=first)
    if threaded:
        scheduler.start()
        assert isinstance(second.result(), Result)
        scheduler.close()
    else:
        while scheduler.step():
            pass
    assert isinstance(second.events[-1], Result)
    assert len(refused) == 1


def test_a_scheduler_is_started_once(scheduler: Scheduler) -> None:
    with pytest.raises(RequestError, match="started already"):
        scheduler.start()


def test_a_full_queue_refuses_while_the_thread_works() -> None:
    scheduler = Scheduler(endless(), Limits(max_batch_size=1, max_queue=1))
    scheduler.start()
    running = Waiting()
    first = scheduler.submit(Request([1], max_tokens=3000), on_event=running)
    assert running.begun.wait(PATIENCE)
    waiting = Waiting()
    scheduler.submit(Request([2], max_tokens=1), on_event=waiting)
    with pytest.raises(QueueFullError):
        scheduler.submit(Request([3]), on_event=Waiting())
    scheduler.cancel(first)
    assert isinstance(waiting.result(), Result)
    scheduler.close()


def test_a_mistake_in_a_round_leaves_nobody_waiting(
    scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def step(self: Decoder) -> None:
        raise AssertionError("no such place")

    with monkeypatch.context() as context, caplog.at_level(logging.CRITICAL):
        context.setattr(Decoder, "step", step)
        heard = [Waiting() for _ in range(6)]
        for one in heard:
            scheduler.submit(Request([1], max_tokens=4), on_event=one)
        for one in heard:
            outcome = one.result()
            assert isinstance(outcome, EngineError)
            assert "no such place" in str(outcome)
    after = Waiting()
    scheduler.submit(Request([1], max_tokens=4), on_event=after)
    assert isinstance(after.result(), Result)
    assert not isinstance(after.result(), OtterError)


class PanicError(BaseException):
    """What a Rust library's panic is in Python: no `Exception`."""


def test_a_panic_ends_the_requests_and_not_the_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    panics = [PanicError("index out of bounds")]
    step = Decoder.step

    def panicking(self: Decoder) -> tuple[int, list[TokenEvent]]:
        if panics:
            raise panics.pop()
        return step(self)

    monkeypatch.setattr(Decoder, "step", panicking)
    with caplog.at_level(logging.CRITICAL), Scheduler(endless()) as scheduler:
        first, second = Waiting(), Waiting()
        scheduler.submit(Request([3], Plain(), max_tokens=2), on_event=first)
        assert isinstance(first.result(), EngineError)
        assert "index out of bounds" in str(first.result())
        scheduler.submit(Request([3], Plain(), max_tokens=2), on_event=second)
        assert isinstance(second.result(), Result)


def test_a_text_that_cannot_be_told_is_the_error_of_its_request() -> None:
    engine = endless()

    def decode(ids: object) -> str:
        raise EngineError("the tokenizer cannot decode the engine's tokens: panic")

    with Scheduler(engine) as scheduler:
        waiting, other = Waiting(), Waiting()
        scheduler.submit(Request([3], Plain(), max_tokens=2), on_event=waiting)
        assert isinstance(waiting.result(), Result)
        engine.tokenizer.decode = decode  # type: ignore[method-assign]
        with contextlib.suppress(EngineError):
            scheduler.submit(Request([3], Plain(), max_tokens=2), on_event=other)
            assert isinstance(other.result(), EngineError)
