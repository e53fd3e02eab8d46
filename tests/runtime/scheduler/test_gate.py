"""L4: the gate: rewards take part where the base's entropy is high enough, and nowhere else."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_export import ArgsGreedy, ArgsStochastic, Request, Result, TokenEvent, generate, stream
from otter_export.runtime.methods import METHODS
from otter_export.runtime.methods.guided import GuidedMethod, entropy
from otter_export.runtime.request import Candidate
from otter_export.signals import Signal
from tests.runtime.fake_engine import REWARD, FakeEngine, make_manifest
from tests.runtime.oracle import full_forward

VOCAB = 16
#: More than any distribution over 16 tokens has: a gate that is always closed.
CLOSED = math.log(VOCAB) + 1
SIGNALS = st.sampled_from(
    [
        Signal("reward"),
        Signal("future", kind="q_value"),
        Signal("reward", activation="identity", bounds=None),
    ]
)
GUIDED = st.sampled_from(
    [
        ArgsGreedy(top_k=8, weight=2.0),
        ArgsGreedy(top_k=3, weight=-2.0, prune=False),
        ArgsGreedy(top_k=8, weight=0.0, prune=False),
        ArgsStochastic(top_k=5, weight=3.0, temperature=0.7, top_p=0.9),
    ]
)
PROMPTS = st.lists(st.integers(1, VOCAB - 1), min_size=1, max_size=8)
SEEDS = st.integers(0, 2**64 - 1)


def fake(signal: Signal = REWARD) -> FakeEngine:
    return FakeEngine(make_manifest(vocab_size=VOCAB, signals=(signal,), eos_token_ids=()), 1.5)


def run(engine: FakeEngine, *requests: Request) -> list[tuple[list[TokenEvent], Result]]:
    """Events and result of each request."""
    heard: dict[int, list[Any]] = {i: [] for i in range(len(requests))}
    for item in stream(engine, list(requests)):
        heard[item.request].append(dataclasses.replace(item, request=0))
    return [(items[:-1], items[-1]) for items in heard.values()]


def gated(method: GuidedMethod, gate: float) -> GuidedMethod:
    return dataclasses.replace(method, gate=gate)


def oracle_entropy(logits: np.ndarray) -> float:
    """Entropy by its definition, term by term in Python's exact sum."""
    top = float(logits.max())
    weights = [math.exp(float(z) - top) for z in logits]
    total = math.fsum(weights)
    return -math.fsum(w / total * math.log(w / total) for w in weights if w > 0)


def test_every_method_that_needs_rewards_has_a_gate() -> None:
    methods = [METHODS.load(name)() for name in METHODS]
    assert {isinstance(m, GuidedMethod) for m in methods if m.needs_rewards} == {True}
    assert not any(isinstance(m, GuidedMethod) for m in methods if not m.needs_rewards)


@given(
    st.lists(st.floats(-1e4, 1e4, width=32) | st.just(-math.inf), min_size=1, max_size=40),
    st.floats(-1e4, 1e4, width=32),
)
def test_entropy_is_that_of_the_definition(drawn: list[float], finite: float) -> None:
    logits = np.array([*drawn, finite], np.float32)
    # Rounding of at most 41 terms in float64.
    assert entropy(logits) == pytest.approx(oracle_entropy(logits), abs=1e-12)


def test_entropy_of_a_large_vocabulary_is_that_of_torch() -> None:
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(0).standard_normal(50_000).astype(np.float32) * 4
    expected = torch.distributions.Categorical(logits=torch.from_numpy(logits).double()).entropy()
    # 50,000 terms in float64, added up in two orders.
    assert entropy(logits) == pytest.approx(float(expected), rel=1e-12)
    assert entropy(np.zeros(50_000, np.float32)) == pytest.approx(math.log(50_000), rel=1e-12)


def test_no_gate_computes_no_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(logits: np.ndarray) -> float:
        raise AssertionError

    monkeypatch.setattr("otter_export.runtime.methods.guided.entropy", never)
    generate(fake(), Request([1, 2], ArgsGreedy(weight=2.0), max_tokens=5))
    # Nor does a gate where no reward is needed.
    generate(fake(), Request([1, 2], ArgsGreedy(weight=0.0, gate=1.0), max_tokens=5))


@settings(max_examples=25, deadline=None)
@given(PROMPTS, GUIDED, SIGNALS, SEEDS)
def test_a_closed_gate_is_decoding_without_rewards(
    prompt: list[int], method: GuidedMethod, signal: Signal, seed: int
) -> None:
    engine = fake(signal)
    request = Request(prompt, gated(method, CLOSED), max_tokens=10, seed=seed)
    [(events, result)] = run(engine, request)
    assert {width for _, width in engine.calls[1:]} == {1}
    unguided = dataclasses.replace(request, method=method.unguided())
    [(_, expected)] = run(fake(signal), unguided)
    assert result.token_ids == expected.token_ids
    assert result.rewards == expected.rewards
    for event in events:
        assert event.gated
        [candidate] = event.candidates
        assert candidate == Candidate(
            event.token_id, candidate.logit, event.reward, candidate.logit, event.signals
        )


@settings(max_examples=40, deadline=None)
@given(PROMPTS, GUIDED, SIGNALS, SEEDS, st.floats(1.0, 2.5))
def test_every_step_is_the_one_or_the_other_by_its_entropy(
    prompt: list[int], method: GuidedMethod, signal: Signal, seed: int, gate: float
) -> None:
    """One token from the same prefix and the same state of the generator, guided or not."""
    request = Request(prompt, gated(method, gate), max_tokens=10, seed=seed)
    [(events, result)] = run(fake(signal), request)
    ids, generator = list(prompt), np.random.Generator(np.random.PCG64(seed))
    for event, reward in zip(events, result.rewards, strict=True):
        step = full_forward(fake(signal), ids)
        logits = step.logits[0, 0]
        closed = oracle_entropy(logits) < gate
        assert event.gated is closed
        # All candidates in the slow way: each with the reward of a forward pass of its own.
        order = method.candidates(logits).tolist()
        rewards = [reward_of(signal, step, ids, token) for token in order]
        scored = np.array(logits[order], np.float64)
        if not closed:
            scored = method.combine(logits[order], np.array(rewards, np.float32))
        winner = method.choose(scored, generator)
        assert event.token_id == order[winner]
        # A closed step is scored as well.
        assert event.reward == reward == rewards[winner]
        ids.append(event.token_id)


def reward_of(signal: Signal, step: Any, ids: list[int], token: int) -> float:
    if signal.kind == "q_value":
        return float(step.signals[signal.name][0, 0, token])
    return float(full_forward(fake(signal), [*ids, token]).signals[signal.name][0, 0])


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(PROMPTS, GUIDED, st.sampled_from([0.0, 1.2, 1.8, CLOSED]), st.integers(0, 9)),
        min_size=2,
        max_size=7,
    )
)
def test_a_crowd_with_mixed_gates_equals_its_requests_alone(
    drawn: list[tuple[list[int], GuidedMethod, float, int]],
) -> None:
    requests = [
        Request(prompt, gated(method, gate), max_tokens=4 + seed, seed=seed)
        for prompt, method, gate, seed in drawn
    ]
    together = run(fake(), *requests)
    for request, (events, result) in zip(requests, together, strict=True):
        [(alone, expected)] = run(fake(), request)
        # Events with all candidates, their logits, rewards and scores.
        assert events == alone
        assert result.token_ids == expected.token_ids


def test_open_and_closed_steps_of_one_request_take_turns_without_moving() -> None:
    class Fixed(FakeEngine):
        def append(self, *args: Any) -> None:
            self.calls.append((0, 0))
            super().append(*args)

    engine = Fixed(make_manifest(vocab_size=VOCAB, eos_token_ids=()), 1.5)
    request = Request([1], ArgsGreedy(top_k=8, gate=1.8, prune=False), max_tokens=30)
    [(events, _)] = run(engine, request)
    # Once, from the prompt's cache.
    assert engine.calls.count((0, 0)) == 1
    widths = [1 if event.gated else 8 for event in events]
    assert [width for _, width in engine.calls[2:]] == widths
    assert 5 < widths.count(1) < 25


def test_a_crowd_is_divided_anew_in_every_step() -> None:
    """As many rows as its steps need, whoever is open when."""
    engine = fake()
    requests = [
        Request([i], ArgsGreedy(top_k=8, gate=1.8, prune=False), max_tokens=12) for i in range(1, 9)
    ]
    heard = run(engine, *requests)
    rows = sum(1 if event.gated else 8 for events, _ in heard for event in events)
    assert sum(batch * width for batch, width in engine.calls[1:]) == rows


def test_a_closed_step_feeds_one_row_beside_others_that_feed_many() -> None:
    engine = fake()
    requests = [
        Request([i], ArgsGreedy(top_k=8, gate=gate, prune=False), max_tokens=6)
        for i, gate in enumerate([0.0] * 3 + [CLOSED] * 5, 1)
    ]
    generate(engine, requests)
    assert sorted(engine.calls[1:]) == [(3, 8)] * 6 + [(5, 1)] * 6
