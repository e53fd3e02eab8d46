"""L4: guidance by one signal and by several, minimums, penalties: in their order, step by step."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_export import (
    ArgsGreedy,
    ArgsStochastic,
    Experts,
    Penalties,
    Plain,
    Request,
    TokenEvent,
    generate,
)
from otter_export.cli.generation_view import summary
from otter_export.errors import EngineError
from otter_export.runtime.engine import Step
from otter_export.runtime.methods.base import DecodingMethod
from otter_export.signals import Signal, kind_of
from tests.runtime.fake_engine import EOS, FakeEngine, make_manifest
from tests.runtime.oracle import full_forward

VOCAB = 16
SIGNALS = (
    Signal("reward"),
    Signal("wild", activation="identity", bounds=None),
    Signal("future", kind="q_value", activation="sigmoid", bounds=(0.0, 1.0)),
    Signal("tilt", kind="expert", activation="identity", bounds=None),
    Signal("drafts", kind="medusa", activation="identity", bounds=None, heads=2),
)
NAMES = ("reward", "wild", "future", "tilt")
FED = {"reward", "wild"}
#: What docs/decoding.md says, from the logits to the token.
ORDER = ("penalties", "truncation", "guidance", "choice")


def fake(*signals: Signal, eos: tuple[int, ...] = (EOS,)) -> FakeEngine:
    return FakeEngine(make_manifest(VOCAB, signals or SIGNALS, eos_token_ids=eos))


class Oracle:
    """One request in the slow and obvious way: every token from a pass over all tokens before."""

    def __init__(self, request: Request, order: Sequence[str] = ORDER) -> None:
        self.engine, self.request, self.order = fake(), request, order
        self.method: Any = request.method
        self.generator = np.random.Generator(np.random.PCG64(request.seed))
        self.tokens: list[int] = []
        self.signals: list[dict[str, float]] = []
        named = getattr(self.method, "weights", None)
        default = "tilt" if isinstance(self.method, Experts) else "reward"
        single = {self.method.signal or default: getattr(self.method, "weight", 0.0)}
        self.weights: dict[str, float] = single if named is None else dict(named)
        self.minimum: dict[str, float] = dict(getattr(self.method, "minimum", None) or {})
        while len(self.tokens) < request.max_tokens and self.tokens[-1:] != [EOS]:
            self.step()

    def step(self) -> None:
        prompt = list(self.request.prompt)  # type: ignore[arg-type]
        row = full_forward(self.engine, prompt + self.tokens)
        ids, scores = list(range(VOCAB)), [float(z) for z in row.logits[0, 0]]
        for stage in self.order:
            ids, scores = getattr(self, stage)(ids, scores, row)
        [token] = ids
        read = dict.fromkeys([*self.weights, *self.minimum])
        self.signals.append({name: self.value(name, token, row) for name in read})
        self.tokens.append(token)

    def value(self, name: str, token: int, row: Step) -> float:
        if name in FED:
            prefix = [*self.request.prompt, *self.tokens, token]
            row = full_forward(self.engine, prefix)  # type: ignore[arg-type]
            return float(row.signals[name][0, 0])
        return float(row.signals[name][0, 0, token])

    def penalties(self, ids: list[int], scores: list[float], row: Step) -> Any:
        given = self.request.penalties
        left_ids, left = [], []
        for token, score in zip(ids, scores, strict=True):
            if token in given.banned_tokens:
                continue
            if token == EOS and len(self.tokens) < given.min_tokens:
                continue
            if token in [*self.request.prompt, *self.tokens]:
                factor = np.float32(given.repetition_penalty)
                score = float(np.float32(score) * (factor if score < 0 else 1))
                score = float(np.float32(score) / (1 if score < 0 else factor))
            if count := self.tokens.count(token):
                score -= given.presence_penalty + given.frequency_penalty * count
            left_ids.append(token)
            left.append(float(np.float32(score)))
        # Bans that leave nothing do not hold: in another order than that of the page.
        return (left_ids, left) if left else (ids, scores)

    def truncation(self, ids: list[int], scores: list[float], row: Step) -> Any:
        top_k, top_p = getattr(self.method, "top_k", None), getattr(self.method, "top_p", 1.0)
        heat = getattr(self.method, "temperature", None)
        if isinstance(self.method, Plain) and not heat:
            top_k, top_p = 1, 1.0
        if top_k is None and top_p == 1:
            return ids, scores
        order = sorted(range(len(ids)), key=lambda i: (-scores[i], ids[i]))[:top_k]
        weights = np.exp((np.array(scores)[order] - max(scores)) / (heat or 1.0))
        if top_p < 1:
            kept = next(n for n in range(1, 99) if sum(weights[:n]) > top_p * sum(weights))
            order = order[:kept]
        return [ids[i] for i in order], [scores[i] for i in order]

    def guidance(self, ids: list[int], scores: list[float], row: Step) -> Any:
        if isinstance(self.method, Plain):
            return ids, scores
        allowed = [
            i
            for i, token in enumerate(ids)
            if all(self.value(n, token, row) >= least for n, least in self.minimum.items())
        ] or range(len(ids))
        guided = [
            score + sum(w * self.value(n, token, row) for n, w in self.weights.items())
            for token, score in zip(ids, scores, strict=True)
        ]
        return [ids[i] for i in allowed], [guided[i] for i in allowed]

    def choice(self, ids: list[int], scores: list[float], row: Step) -> Any:
        heat = getattr(self.method, "temperature", None)
        if heat:
            weights = np.exp((np.array(scores) - max(scores)) / heat)
            parts = np.cumsum(weights)
            draw = self.generator.random() * parts[-1]
            winner = next(i for i in range(len(ids)) if parts[i] > draw)
        else:
            winner = scores.index(max(scores))
        return [ids[winner]], [scores[winner]]


WEIGHTS = st.sampled_from([-3.0, -0.5, 0.0, 0.7, 4.0])


@st.composite
def methods(draw: st.DrawFn) -> DecodingMethod:
    options: dict[str, Any] = {}
    if draw(st.booleans()):
        options["weights"] = draw(st.dictionaries(st.sampled_from(NAMES), WEIGHTS, min_size=1))
    else:
        options |= {"signal": draw(st.sampled_from(NAMES)), "weight": draw(WEIGHTS)}
    floors = st.floats(-1.0, 1.0)
    if draw(st.integers(0, 2)) == 0:
        options["minimum"] = draw(st.dictionaries(st.sampled_from(NAMES), floors, min_size=1))
    options["top_k"] = draw(st.sampled_from([1, 3, 8, 16]))
    kind = draw(st.sampled_from(["plain", "greedy", "stochastic", "experts"]))
    heat, top_p = draw(st.sampled_from([0.5, 1.0, 3.0])), draw(st.sampled_from([0.3, 0.8, 1.0]))
    if kind == "plain":
        return Plain(top_k=options["top_k"], temperature=draw(st.sampled_from([0, heat])))
    if kind == "greedy":
        return ArgsGreedy(**options, prune=draw(st.booleans()))
    if kind == "stochastic":
        return ArgsStochastic(**options, temperature=heat, top_p=top_p)
    reads = {options.get("signal"), *options.get("weights", {}), *options.get("minimum", {})}
    if not reads & FED and draw(st.booleans()):
        options["top_k"] = None
    return Experts(**options, temperature=draw(st.sampled_from([None, 0, heat])), top_p=top_p)


PENALTIES = st.builds(
    Penalties,
    repetition_penalty=st.sampled_from([1.0, 1.0, 0.5, 2.0]),
    presence_penalty=st.sampled_from([0.0, 0.0, -1.0, 2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, -0.5, 1.5]),
    banned_tokens=st.lists(st.integers(0, VOCAB - 1), max_size=5).map(tuple),
    min_tokens=st.integers(0, 6),
)
REQUESTS = st.builds(
    Request,
    st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=6),
    methods(),
    max_tokens=st.integers(1, 7),
    seed=st.integers(0, 2**64 - 1),
    penalties=st.just(Penalties()) | PENALTIES,
    drafts=st.sampled_from(["none", "lookup", "drafts"]),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(REQUESTS, min_size=1, max_size=4))
def test_alone_and_in_a_crowd_as_every_token_by_itself(requests: list[Request]) -> None:
    for request, result in zip(requests, generate(fake(), requests), strict=True):
        expected = Oracle(request)
        assert list(result.token_ids) == expected.tokens
        # The same numbers, not merely close ones: they come from the same rows.
        assert result.signals == {
            name: tuple(values[name] for values in expected.signals) for name in expected.signals[0]
        }
        assert result.rewards == next(iter(result.signals.values()))


SWAPPED = [
    ("truncation", "penalties", "guidance", "choice"),
    ("penalties", "guidance", "truncation", "choice"),
    ("penalties", "truncation", "choice", "guidance"),
]


@pytest.mark.parametrize("order", SWAPPED, ids="-".join)
@pytest.mark.parametrize(
    "method",
    [
        ArgsGreedy(top_k=3, weights={"reward": 3.0, "tilt": 0.5}),
        ArgsStochastic(top_k=6, top_p=0.6, weight=4.0),
        Experts(top_p=0.6, minimum={"future": 0.4}),
    ],
    ids=lambda method: method.name,
)
def test_the_order_is_that_of_the_page(method: DecodingMethod, order: tuple[str, ...]) -> None:
    penalties = Penalties(repetition_penalty=2.0, banned_tokens=(3, 9), min_tokens=6)
    differ = 0
    for seed in range(8):
        request = Request([seed + 1, 5], method, 6, seed=seed, penalties=penalties)
        tokens = list(generate(fake(), request)[0].token_ids)
        assert tokens == Oracle(request).tokens
        # Another order, another text: so the test would see it.
        differ += tokens != Oracle(request, order).tokens
    assert differ > 2


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=6),
    st.sampled_from([None, 0, 0.4, 1.5]),
    st.sampled_from([None, 1, 5]),
    st.sampled_from([0.2, 0.9, 1.0]),
    st.integers(0, 2**64 - 1),
)
def test_experts_of_weight_zero_are_plain(
    prompt: list[int], temperature: float | None, top_k: int | None, top_p: float, seed: int
) -> None:
    options: Any = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "signal": "tilt"}
    engine = fake()
    plain, zero = (
        generate(engine, Request(prompt, method, 8, seed=seed))[0]
        for method in (Plain(**options), Experts(weight=0, **options))
    )
    assert dataclasses.replace(plain, seconds=0) == dataclasses.replace(zero, seconds=0)


@pytest.mark.parametrize(
    ("weights", "widths"),
    [
        ({"future": 1.0, "tilt": -2.0}, {1}),
        ({"future": 1.0, "wild": 0.1}, {8}),
    ],
)
def test_sums_that_score_the_next_token_feed_one_row(
    weights: dict[str, float], widths: set[int]
) -> None:
    engine = fake(eos=())
    generate(engine, Request([1, 2], ArgsGreedy(weights=weights), max_tokens=6))
    assert {width for _, width in engine.calls[1:]} == widths


def test_sums_are_pruned_by_what_is_known_and_by_bounds() -> None:
    rows = []
    for prune in (True, False):
        engine = fake(eos=())
        method = ArgsGreedy(weights={"tilt": 1.5, "reward": 0.3}, prune=prune)
        request = Request([1], method, max_tokens=40)
        rows.append((generate(engine, request)[0].token_ids, sum(w for _, w in engine.calls[1:])))
    assert rows[0][0] == rows[1][0]
    assert rows[0][1] < rows[1][1] / 2


def test_a_minimum_leaves_out_what_is_below_unless_all_are() -> None:
    events: list[TokenEvent] = []
    method = ArgsGreedy(top_k=6, weight=0.0, minimum={"reward": 0.5})
    request = Request([2, 3], method, max_tokens=30)
    generate(fake(eos=()), request, on_event=events.append)
    reached = [any(c.signals["reward"] >= 0.5 for c in e.candidates) for e in events]
    assert {True, False} == set(reached)
    for event, some in zip(events, reached, strict=True):
        left = [c for c in event.candidates if c.signals["reward"] >= 0.5 or not some]
        assert event.token_id == max(left, key=lambda c: c.logit).token_id


def test_candidates_of_all_tokens_are_reported_up_to_a_number() -> None:
    engine = FakeEngine(make_manifest(256, SIGNALS, eos_token_ids=()))
    for top_p in (1.0, 0.95):
        events: list[TokenEvent] = []
        method = Experts(top_p=top_p, weight=20.0)
        generate(engine, Request([1], method, max_tokens=8), on_event=events.append)
        for event in events:
            assert 20 < len(event.candidates) <= 65
            assert event.token_id in [c.token_id for c in event.candidates]
            logits = [c.logit for c in event.candidates]
            assert logits == sorted(logits, reverse=True)


def test_an_engine_of_drafts_alone_decodes_plainly_and_has_no_rewards() -> None:
    engine = fake(SIGNALS[-1])
    events: list[TokenEvent] = []
    for method in (Plain(), ArgsGreedy(weight=0.0)):
        [result] = generate(engine, Request([1], method, max_tokens=5), on_event=events.append)
        assert (result.rewards, result.signals) == ((), {})
        assert json.loads(json.dumps(result.to_json()))["rewards"] == []
        assert summary([result]).startswith(f"[{len(result.token_ids)} tokens")
    assert {event.reward for event in events} == {None}
    assert {c.reward for event in events for c in event.candidates} == {None}
    with pytest.raises(EngineError, match="args-greedy needs a signal of kind value or q_value"):
        generate(engine, "\1", ArgsGreedy())


def test_signals_are_written_if_there_are_several() -> None:
    one, several = generate(
        fake(),
        [
            Request([1], ArgsGreedy(), max_tokens=3),
            Request([1], ArgsGreedy(weights={"tilt": 1, "reward": 2}), max_tokens=3),
        ],
    )
    assert "signals" not in one.to_json() and list(one.signals) == ["reward"]
    assert list(several.to_json()["signals"]) == ["tilt", "reward"]
    assert several.rewards == several.signals["tilt"]


def test_the_default_reward_is_of_a_kind_that_suits_the_method() -> None:
    engine = fake(*SIGNALS[::-1])
    found = [
        list(generate(engine, Request([1], method, max_tokens=2))[0].signals)
        for method in (Plain(), ArgsGreedy(), Experts())
    ]
    assert found == [["future"], ["future"], ["tilt"]]
    # Where nothing else scores, what is only reported may be of any kind.
    assert list(generate(fake(SIGNALS[3]), "\1", Plain(), max_tokens=2)[0].signals) == ["tilt"]
    assert all(kind_of(signal).scores for signal in SIGNALS[:4])
