"""L4: segments whose reward is too low are drawn anew, as a slow loop without a cache does it."""

from __future__ import annotations

import collections
import copy
import dataclasses
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_export import (
    ArgsGreedy,
    ArgsStochastic,
    Experts,
    Plain,
    Request,
    SegmentRejection,
    generate,
    load_engine,
    segment_rejection,
)
from otter_export.errors import EngineError, OtterError, RequestError
from otter_export.runtime.methods.base import DecodingMethod
from otter_export.signals import Signal
from tests.runtime.fake_engine import EOS, FakeEngine, make_manifest
from tests.runtime.oracle import full_forward
from tests.runtime.tiny_model import make_model

PROMPT = [3, 1, 4]
SAMPLE = Plain(temperature=1.0)
#: Every segment is accepted at once.
EVERYTHING = SegmentRejection(threshold=-1e30)


def fake(
    *signals: Signal, vocab_size: int = 16, eos: tuple[int, ...] = (EOS,), **more: Any
) -> FakeEngine:
    signals = signals or (Signal("reward"),)
    manifest = make_manifest(vocab_size, signals, max_sequence_length=400, eos_token_ids=eos)
    return FakeEngine(manifest, **more)


def softmax(logits: Sequence[float]) -> np.ndarray:
    weights = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return weights / weights.sum()


def slowly(
    request: Request, options: SegmentRejection
) -> tuple[list[int], list[tuple[int, int, bool]]]:
    """Tokens, and of each segment its length, draws and acceptance; all rows anew every time."""
    engine, seed = fake(), request.seed
    prompt, most = list(request.prompt), request.max_tokens

    def reward(tokens: list[int]) -> float:
        return float(full_forward(engine, [*prompt, *tokens]).signals["reward"][0, 0])

    def extend(tokens: list[int], own: np.random.Generator) -> list[int]:
        draw = list(tokens)
        while True:
            chances = softmax(full_forward(engine, [*prompt, *draw]).logits[0, 0])
            new, entropy = len(draw) - len(tokens), -float((chances * np.log(chances)).sum())
            ended = len(draw) == most or (new and draw[-1] == EOS) or new == options.longest
            if ended or (new >= options.shortest and entropy >= options.entropy):
                return draw
            draw.append(int(np.searchsorted(np.cumsum(chances), own.random(), side="right")))

    whole = options.threshold
    begin = (1 - options.start) * reward([]) + options.start * whole
    tokens: list[int] = []
    numbers = np.random.Generator(np.random.PCG64(seed))
    segments: list[tuple[int, int, bool]] = []
    while len(tokens) < most and EOS not in tokens:
        rejected: list[tuple[float, int, list[int], np.random.Generator]] = []
        for index in range(options.tries):
            key = np.random.SeedSequence(seed, spawn_key=(len(segments), index))
            own = np.random.Generator(np.random.PCG64(key))
            chance = own.random()
            if index == 0:
                own = copy.deepcopy(numbers)
            draw = extend(tokens, own)
            found = reward(draw)
            wanted = min(begin + len(draw) / most * (whole - begin), whole)
            sure = found >= wanted
            if sure or (options.beta and chance < math.exp((found - wanted) / options.beta)):
                segments.append((len(draw) - len(tokens), index + 1, True))
                break
            rejected.append((found, -index, draw, own))
        else:
            _, _, draw, own = max(rejected, key=lambda one: one[:2])
            segments.append((len(draw) - len(tokens), options.tries, False))
        tokens, numbers = draw, own
    return tokens, segments


@st.composite
def rejections(draw: st.DrawFn) -> SegmentRejection:
    shortest = draw(st.integers(1, 4))
    return SegmentRejection(
        threshold=draw(st.floats(-1.5, 1.5)),
        start=draw(st.floats(0, 1)),
        beta=draw(st.sampled_from([0.0, 1e-300, 0.2, 0.7, 1e30])),
        entropy=draw(st.floats(0, 3)),
        shortest=shortest,
        longest=shortest + draw(st.integers(0, 4)),
        tries=draw(st.integers(1, 8)),
        at_a_time=draw(st.integers(1, 9)),
    )


@settings(max_examples=25, deadline=None)
@given(options=rejections(), seed=st.integers(0, 2**64 - 1), most=st.integers(1, 9))
def test_it_is_what_a_slow_loop_makes_however_many_are_drawn_at_a_time(
    options: SegmentRejection, seed: int, most: int
) -> None:
    request = Request(PROMPT, SAMPLE, max_tokens=most, seed=seed)
    engine = fake()
    result = segment_rejection(engine, request, options)
    tokens, segments = slowly(request, options)
    assert list(result.token_ids) == tokens
    assert [(s.tokens, s.tries, s.accepted) for s in result.segments] == segments
    assert result.forwards == len(engine.calls) - 1
    # The prompt is fed once, and behind it one token of each draw that is left.
    assert engine.calls[0] == (1, len(PROMPT))
    assert all(batch <= options.at_a_time and width == 1 for batch, width in engine.calls[1:])
    ends = np.cumsum([s.tokens for s in result.segments])
    assert [s.reward for s in result.segments] == [result.rewards[end - 1] for end in ends]


METHODS = [
    SAMPLE,
    Plain(temperature=0.7, top_k=5, top_p=0.9),
    ArgsStochastic(top_k=4, weight=2.0),
    ArgsStochastic(top_k=4, gate=2.0),
    Experts(weights={"reward": 0.0, "tilt": 2.0}, temperature=1.0, top_k=4),
]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_where_everything_is_accepted_the_text_is_that_of_generate(method: DecodingMethod) -> None:
    tilt = Signal("tilt", kind="expert", activation="identity", bounds=None)
    request = Request(PROMPT, method, max_tokens=30, seed=5, stop=("\x07\x02",))
    expected = generate(fake(Signal("reward"), tilt), request)[0]
    for options in (EVERYTHING, SegmentRejection(threshold=9, tries=1, longest=5, beta=0)):
        result = segment_rejection(fake(Signal("reward"), tilt), request, options)
        for field in ("token_ids", "text", "rewards", "signals", "finish_reason", "prompt"):
            assert getattr(result, field) == getattr(expected, field)
        assert sum(segment.tokens for segment in result.segments) == len(result.token_ids)
        assert {s.accepted for s in result.segments} == {options is EVERYTHING}
        if isinstance(method, Plain):
            # Draws behind the one that is accepted end with it.
            assert result.forwards == expected.forwards


@pytest.mark.parametrize("method", METHODS[2:4], ids=repr)
def test_candidates_are_fed_for_each_draw(method: DecodingMethod) -> None:
    request = Request(PROMPT, method, max_tokens=20, seed=1)
    options = [SegmentRejection(threshold=0.95, entropy=1.5, at_a_time=n) for n in (1, 4)]
    one, four = (segment_rejection(fake(eos=()), request, each) for each in options)
    assert (one.token_ids, one.segments) == (four.token_ids, four.segments)
    assert max(segment.tries for segment in one.segments) > 4
    assert four.forwards < one.forwards


@pytest.mark.parametrize("shortest", [1, 2])
def test_segments_come_as_often_as_their_chance_to_be_drawn_and_accepted(shortest: int) -> None:
    options = SegmentRejection(
        threshold=0.6, start=1, beta=0.5, entropy=0, shortest=shortest, tries=1000, at_a_time=2
    )
    engine, most, count = fake(vocab_size=3, eos=(), spread=1.0), 2, 250

    def look(tokens: Sequence[int]) -> tuple[np.ndarray, float]:
        step = full_forward(engine, [1, *tokens])
        return softmax(step.logits[0, 0]), float(step.signals["reward"][0, 0])

    chances = {}
    for first in range(3):
        after, reward = look([first])
        kept = math.exp(min((reward - 0.6) / 0.5, 0)) if shortest == 1 else 1.0
        for second in range(3):
            accepted = math.exp(min((look([first, second])[1] - 0.6) / 0.5, 0))
            chances[first, second] = look([])[0][first] * kept, after[second] * accepted
    # Each segment is drawn until it is accepted: its chances add up to 1.
    expected = {pair: math.prod(both) for pair, both in chances.items()}
    if shortest == 1:
        ends = {f: sum(chances[f, s][1] for s in range(3)) for f in range(3)}
        expected = {(f, s): one * two / ends[f] for (f, s), (one, two) in chances.items()}
    total = sum(expected.values())
    request = Request([1], SAMPLE, max_tokens=most)
    found = collections.Counter(
        segment_rejection(engine, dataclasses.replace(request, seed=seed), options).token_ids
        for seed in range(count)
    )
    chi = sum(
        (found[p] - count * e / total) ** 2 / (count * e / total) for p, e in expected.items()
    )
    # 8 degrees of freedom: above 26.1 in one of a thousand such tests.
    assert chi < 26.1
    base = [
        count * look([])[0][f] * look([f])[0][s] for f, s in itertools.product(range(3), repeat=2)
    ]
    plain = sum((found[divmod(i, 3)] - e) ** 2 / e for i, e in enumerate(base))
    assert plain > 60  # so the test can tell


def test_rows_of_a_real_cache_are_those_of_the_text(tmp_path: Path) -> None:
    model = make_model(seed=3)
    model.save(tmp_path / "engine")
    engine = load_engine(tmp_path / "engine", threads=1)
    results = []
    for at_a_time in (1, 4, 7):
        options = SegmentRejection(
            threshold=0.9, entropy=2.5, longest=6, tries=9, beta=0.05, at_a_time=at_a_time
        )
        request = Request("a film", SAMPLE, max_tokens=40, seed=2)
        results.append(segment_rejection(engine, request, options))
    assert len({(r.token_ids, r.rewards, r.segments) for r in results}) == 1
    result = results[0]
    assert {segment.accepted for segment in result.segments} == {True, False}
    assert max(segment.tries for segment in result.segments) > 4
    ids = [*result.prompt_ids, *result.token_ids]
    rewards = model.reference(ids)[1]["reward"][len(result.prompt_ids) :]
    # float32 against float64.
    np.testing.assert_allclose(result.rewards, rewards, atol=1e-5)


def test_no_seed_draws_one() -> None:
    request = Request(PROMPT, SAMPLE, max_tokens=20)
    texts = {segment_rejection(fake(eos=()), request, EVERYTHING).token_ids for _ in range(3)}
    assert len(texts) == 3


FUTURE = Signal("future", kind="q_value")
DRAFTS = Signal("drafts", kind="medusa", heads=2)


@pytest.mark.parametrize(
    ("signals", "request_", "message"),
    [
        ((), Request(PROMPT, Plain()), "method plain draws nothing as it is; sample"),
        ((), Request(PROMPT, ArgsGreedy()), "method args-greedy draws nothing"),
        ((), Request(PROMPT, Experts(signal="reward")), "method experts draws nothing"),
        ((), Request(PROMPT, SAMPLE, drafts="lookup"), "leave out drafts='lookup'"),
        ((FUTURE,), Request(PROMPT, SAMPLE), "method plain reads here: future (q_value)"),
        ((DRAFTS,), Request(PROMPT, SAMPLE), "method plain reads here: none"),
        ((), Request(PROMPT, Plain(temperature=1, signal="joy")), "no signal 'joy'"),
        ((), "text", "request must be a Request, got 'text'"),
    ],
)
def test_a_request_that_does_not_fit_is_one_line(
    signals: tuple[Signal, ...], request_: Any, message: str
) -> None:
    engine = fake(*signals)
    with pytest.raises(OtterError) as caught:
        segment_rejection(engine, request_, EVERYTHING)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not engine.calls


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("threshold", math.inf, "threshold must be a finite number, got inf"),
        ("threshold", None, "threshold must be a finite number, got None"),
        ("start", 1.1, "start must be a finite number at least 0 and at most 1, got 1.1"),
        ("beta", -0.1, "beta must be a finite number at least 0, got -0.1"),
        ("entropy", -1, "entropy must be a finite number at least 0, got -1"),
        ("shortest", 0, "shortest must be an integer of at least 1, got 0"),
        ("longest", 3, "longest must be an integer of at least 4, got 3"),
        ("tries", 0, "tries must be an integer of at least 1, got 0"),
        ("tries", 2.5, "tries must be an integer of at least 1, got 2.5"),
        ("at_a_time", 1025, "at_a_time must be an integer of at most 1024, got 1025"),
    ],
)
def test_a_wrong_option_is_one_line(option: str, value: Any, message: str) -> None:
    with pytest.raises(RequestError) as caught:
        SegmentRejection(**{"threshold": 0.5, option: value})
    assert str(caught.value) == message


def test_options_of_another_type_are_one_line() -> None:
    options: Any = {"threshold": 1}
    with pytest.raises(RequestError, match="options must be a SegmentRejection, got"):
        segment_rejection(fake(), Request(PROMPT, SAMPLE), options)


@pytest.mark.parametrize("at", [0, 3])
def test_an_engine_that_fails_or_answers_nan_is_an_error(
    monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    engine = fake()
    forward = engine.forward

    def spoilt(*arguments: Any) -> Any:
        step = forward(*arguments)
        if len(engine.calls) > at:
            step.signals["reward"][:] = np.nan
        return step

    monkeypatch.setattr(engine, "forward", spoilt)
    with pytest.raises(EngineError, match="a reward that is NaN or infinite"):
        segment_rejection(engine, Request(PROMPT, SAMPLE, seed=0), EVERYTHING)
