"""L4: the decoding loop on an engine whose answers change with anything that a token sees."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_export import (
    ArgsGreedy,
    ArgsStochastic,
    Plain,
    Request,
    Result,
    TokenEvent,
    generate,
    stream,
)
from otter_export.errors import EngineError
from otter_export.runtime.methods.base import DecodingMethod
from otter_export.runtime.prefill import prefill
from otter_export.signals import Signal
from tests.runtime.fake_engine import EOS, ByteTokenizer, FakeEngine, make_manifest
from tests.runtime.oracle import full_forward, guided_greedy

VALUE = Signal("reward")
Q_VALUE = Signal("future", kind="q_value")
UNBOUNDED = Signal("reward", activation="identity", bounds=None)

PROMPTS = st.lists(st.integers(1, 15), min_size=1, max_size=12)
WEIGHTS = st.sampled_from([-4.0, -0.5, 0.3, 1.0, 6.0])


def small(signal: Signal = VALUE, **options: object) -> FakeEngine:
    """16 tokens: collisions, ties and end-of-sequence tokens are common."""
    return FakeEngine(make_manifest(vocab_size=16, signals=(signal,), **options))  # type: ignore[arg-type]


def same(a: Result, b: Result) -> bool:
    return dataclasses.replace(a, request=0, seconds=0) == dataclasses.replace(
        b, request=0, seconds=0
    )


@settings(max_examples=25)
@given(PROMPTS, st.integers(1, 20), WEIGHTS, st.sampled_from([VALUE, Q_VALUE, UNBOUNDED]))
def test_guided_decoding_equals_scoring_every_candidate_by_itself(
    prompt: list[int], top_k: int, weight: float, signal: Signal
) -> None:
    engine = small(signal)
    method = ArgsGreedy(top_k=min(top_k, 16), weight=weight)
    result = generate(engine, Request(prompt, method, max_tokens=8))[0]
    tokens, rewards = guided_greedy(small(signal), prompt, min(top_k, 16), weight, 8)
    assert list(result.token_ids) == tokens
    # The same numbers, not merely close ones: rewards come from the same rows.
    assert list(result.rewards) == rewards


@settings(max_examples=25)
@given(PROMPTS, st.integers(1, 16), st.sampled_from([VALUE, Q_VALUE]))
def test_weight_zero_is_plain_greedy_decoding(
    prompt: list[int], top_k: int, signal: Signal
) -> None:
    engine = small(signal)
    plain = generate(engine, Request(prompt, Plain(), max_tokens=10))[0]
    for prune in (True, False):
        method = ArgsGreedy(top_k=top_k, weight=0, prune=prune)
        assert same(generate(engine, Request(prompt, method, max_tokens=10))[0], plain)


@settings(max_examples=25)
@given(
    PROMPTS,
    st.integers(1, 16),
    st.sampled_from([0.2, 1.0, 3.0]),
    st.sampled_from([0.3, 0.9, 1.0]),
    st.integers(0, 2**64 - 1),
)
def test_weight_zero_is_plain_sampling(
    prompt: list[int], top_k: int, temperature: float, top_p: float, seed: int
) -> None:
    engine = small()
    options = {"top_k": top_k, "temperature": temperature, "top_p": top_p}
    results = [
        generate(engine, Request(prompt, method, max_tokens=10, seed=seed))[0]
        for method in (Plain(**options), ArgsStochastic(weight=0, **options))  # type: ignore[arg-type]
    ]
    assert same(*results)


def test_weight_zero_feeds_one_row() -> None:
    engine = small()
    generate(engine, Request([3, 4], ArgsGreedy(top_k=8, weight=0), max_tokens=6))
    assert {width for _, width in engine.calls[1:]} == {1}


@settings(max_examples=25)
@given(PROMPTS, st.integers(1, 16), st.floats(-6, 6))
def test_pruning_changes_nothing(prompt: list[int], top_k: int, weight: float) -> None:
    engine = small()
    pruned, whole = (
        generate(engine, Request(prompt, ArgsGreedy(top_k=top_k, weight=weight, prune=p)))[0]
        for p in (True, False)
    )
    assert pruned.forwards >= whole.forwards
    assert same(dataclasses.replace(pruned, forwards=whole.forwards), whole)


def test_pruning_saves_rows() -> None:
    rows = []
    for prune in (True, False):
        engine = FakeEngine(make_manifest(eos_token_ids=()), spread=3.0)
        method = ArgsGreedy(top_k=8, weight=0.5, prune=prune)
        generate(engine, Request([1], method, max_tokens=40))
        rows.append(sum(width for _, width in engine.calls[1:]))
    assert rows[1] == 8 * 40
    assert rows[0] < rows[1] / 2


class Steady(FakeEngine):
    """Rewards keep near that of the prefix: 0.6, give or take."""

    def __init__(self, reach: float) -> None:
        super().__init__(make_manifest(eos_token_ids=()), spread=3.0)
        self.reach = reach

    def _signal(self, signal: Signal, kept: list[list[bytes]]) -> np.ndarray:
        return np.float32(0.6) + np.float32(self.reach) * super()._signal(signal, kept)


def test_a_reward_like_that_of_the_prefix_saves_rows_and_no_pass_is_repeated() -> None:
    method = ArgsGreedy(top_k=8, weight=2.0)
    engine = Steady(reach=0.04)
    events: list[TokenEvent] = []
    result = generate(engine, Request([1], method, max_tokens=40), on_event=events.append)[0]
    whole = dataclasses.replace(method, prune=False)
    expected = generate(Steady(reach=0.04), Request([1], whole, max_tokens=40))[0]
    assert result.forwards == expected.forwards == 40
    assert (result.token_ids, result.rewards) == (expected.token_ids, expected.rewards)
    # No more candidates than could beat the best logit with 0.6 - 0.1, as it was expected at least,
    # by a reward of 1, where the bounds alone say 4.
    logits = [[c.logit for c in event.candidates] for event in events]
    assert max(row[0] - row[-1] for row in logits) <= 2.0 * (1 - 0.5 + 0.05)
    assert sum(len(row) for row in logits) < 8 * 40 / 3


@pytest.mark.parametrize("reach", [0.39, 1.0])
def test_a_reward_unlike_that_of_the_prefix_costs_few_passes(reach: float) -> None:
    engine = Steady(reach) if reach < 1 else FakeEngine(make_manifest(eos_token_ids=()), spread=3.0)
    requests = [Request([1], ArgsGreedy(top_k=8, weight=2.0), max_tokens=120) for _ in range(2)]
    for result in generate(engine, requests):
        # Some at the beginning, and one in 70 after that.
        assert 120 < result.forwards < 130


def test_an_unbounded_signal_is_never_pruned() -> None:
    engine = small(UNBOUNDED, eos_token_ids=())
    generate(engine, Request([1], ArgsGreedy(top_k=8, weight=0.01), max_tokens=5))
    assert [width for _, width in engine.calls[1:]] == [8] * 5


METHODS: list[DecodingMethod] = [
    ArgsGreedy(top_k=8, weight=2.0),
    ArgsGreedy(top_k=3, weight=-2.0),
    ArgsGreedy(top_k=16, weight=0),
    ArgsStochastic(top_k=5, weight=1.0, temperature=0.7, top_p=0.9),
    Plain(),
    Plain(temperature=1.5, top_k=4),
    Plain(temperature=1.0),
]


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.tuples(PROMPTS, st.sampled_from(METHODS), st.integers(0, 9), st.integers(1, 12)),
        min_size=1,
        max_size=7,
    ),
    st.integers(1, 7),
)
def test_a_batch_equals_its_requests_alone(
    drawn: list[tuple[list[int], DecodingMethod, int, int]], batch_size: int
) -> None:
    requests = [Request(p, m, seed=s, max_tokens=n) for p, m, s, n in drawn]
    together = generate(small(), requests, batch_size=batch_size)
    for request, result in zip(requests, together, strict=True):
        assert same(result, generate(small(), request)[0])


@pytest.mark.parametrize("signal", [VALUE, Q_VALUE], ids=lambda s: s.kind)
@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_one_forward_pass_per_generated_token(signal: Signal, method: DecodingMethod) -> None:
    engine = small(signal, eos_token_ids=())
    result = generate(engine, Request([5, 6, 7], method, max_tokens=20, seed=1))[0]
    assert len(result.token_ids) == len(result.rewards) == 20
    # One more call, the prompt's.
    assert len(engine.calls) == result.forwards + 1
    if not method.prunes or signal is Q_VALUE:
        assert result.forwards == 20
    if signal is Q_VALUE:
        assert {width for _, width in engine.calls[1:]} == {1}


def test_a_finished_sequence_leaves_the_batch() -> None:
    sizes = [(9, 2), (3, 5), (1, 8)]
    requests = [Request([1], ArgsGreedy(top_k=k), max_tokens=n) for k, n in sizes]
    engine = small(UNBOUNDED, eos_token_ids=())
    generate(engine, requests)
    # Nine and three candidates share a pass, with a row of padding; one alone has its own.
    assert engine.calls[1:] == [(2, 10), (1, 1)] * 2 + [(1, 4), (1, 1)] * 3 + [(1, 1)] * 3


def test_a_free_place_is_taken_at_once() -> None:
    engine = small(eos_token_ids=())
    requests = [Request([1], Plain(), max_tokens=n) for n in (2, 6, 4)]
    results = generate(engine, requests, batch_size=2)
    assert [len(r.token_ids) for r in results] == [2, 6, 4]
    assert engine.calls == [(2, 1), *[(2, 1)] * 2, (1, 1), *[(2, 1)] * 4]


def test_the_end_of_sequence_token_competes_as_a_candidate() -> None:
    # The script makes it the second best: 100 for token 9, nearly as much for EOS.
    class NearEos(FakeEngine):
        def _logits(self, digest: bytes) -> np.ndarray:
            logits = np.zeros(16)
            logits[[9, EOS]] = [10.0, 9.5]
            return logits

        def _signal(self, signal: Signal, kept: list[list[bytes]]) -> np.ndarray:
            return np.full((len(kept), len(kept[0])), -0.5, np.float32)

        def forward(self, cache, input_ids, *rest):  # type: ignore[no-untyped-def]
            step = super().forward(cache, input_ids, *rest)
            fed = input_ids[:, -step.logits.shape[1] :]
            reward = np.where(fed == EOS, np.float32(0.9), step.signals["reward"])
            return dataclasses.replace(step, signals={"reward": reward})

    engine = NearEos(make_manifest(vocab_size=16))
    guided = generate(engine, Request([1], ArgsGreedy(top_k=2, weight=1.0), max_tokens=5))[0]
    assert guided.token_ids == (EOS,)
    assert guided.finish_reason == "eos"
    assert guided.text == ""
    assert guided.rewards == (pytest.approx(0.9),)
    plain = generate(engine, Request([1], Plain(), max_tokens=5))[0]
    assert plain.token_ids == (9,) * 5
    assert plain.finish_reason == "length"


def test_a_higher_weight_gives_more_reward_and_a_negative_one_less() -> None:
    means = []
    for weight in (-4.0, 0.0, 4.0):
        engine = small(eos_token_ids=())
        requests = [Request([i], ArgsGreedy(weight=weight), max_tokens=30) for i in range(1, 9)]
        means.append(np.mean([r.rewards for r in generate(engine, requests)]))
    # Rewards are uniform in [-1, 1]: unguided the mean of 240 is 0 +- 0.04.
    assert means[0] < -0.4
    assert -0.2 < means[1] < 0.2
    assert means[2] > 0.4


def test_the_reward_is_that_of_the_prefix_which_the_token_ends() -> None:
    engine = small(eos_token_ids=())
    result = generate(engine, Request([2, 3], Plain(temperature=1.0), max_tokens=6, seed=4))[0]
    for i, reward in enumerate(result.rewards):
        prefix = [2, 3, *result.token_ids[: i + 1]]
        assert full_forward(engine, prefix).signals["reward"][0, 0] == np.float32(reward)


def test_seeds_decide_samples() -> None:
    def sampled(seed: int | None) -> tuple[int, ...]:
        method = ArgsStochastic(top_k=16, temperature=3.0)
        request = Request([1, 2], method, max_tokens=20, seed=seed)
        return generate(small(eos_token_ids=()), request)[0].token_ids

    assert sampled(3) == sampled(3)
    assert sampled(3) != sampled(4)
    assert sampled(None) != sampled(None)


@pytest.mark.parametrize(("max_tokens", "limit", "generated"), [(5, 128, 5), (50, 10, 7)])
def test_length_ends_a_sequence(max_tokens: int, limit: int, generated: int) -> None:
    engine = small(max_sequence_length=limit, eos_token_ids=())
    result = generate(engine, Request([1, 2, 3], max_tokens=max_tokens))[0]
    assert len(result.token_ids) == generated
    assert result.finish_reason == "length"


def scripted(text: bytes, prompt: bytes = b"Hi") -> FakeEngine:
    """Says ``text`` after ``prompt``, whatever the rewards are."""
    return FakeEngine(script={len(prompt) - 1 + i: byte for i, byte in enumerate(text)})


def test_a_stop_word_ends_the_text_across_tokens() -> None:
    result = generate(scripted(b"one. END two"), "Hi", max_tokens=12, stop=["XX", " END"])[0]
    assert result.text == "one."
    assert result.finish_reason == "stop"
    # The tokens that spell the stop word were generated, and have their rewards.
    assert bytes(result.token_ids) == b"one. END"
    assert len(result.rewards) == 8


def test_a_stop_word_of_the_prompt_does_not_count() -> None:
    result = generate(scripted(b"D. x", b"EN"), "EN", max_tokens=4, stop="END")[0]
    assert result.text == "D. x"


def test_a_stop_word_that_only_begins_is_text() -> None:
    result = generate(scripted(b"one. EN"), "Hi", max_tokens=7, stop="END")[0]
    assert (result.text, result.finish_reason) == ("one. EN", "length")


def test_text_before_the_end_of_sequence_is_kept_with_what_was_held() -> None:
    engine = scripted(b"abEN\x00")
    result = generate(engine, "Hi", max_tokens=9, stop="END")[0]
    assert (result.text, result.finish_reason) == ("abEN", "eos")


def test_streamed_text_adds_up_and_never_has_half_a_character() -> None:
    text = "né€𝄞!"
    engine = scripted(text.encode())
    items = list(stream(engine, [Request("Hi", max_tokens=len(text.encode()))]))
    events = [item for item in items if isinstance(item, TokenEvent)]
    assert "".join(event.text for event in events) == text
    assert [event.text for event in events] == ["n", "", "é", "", "", "€", "", "", "", "𝄞", "!"]
    assert [event.finish_reason for event in events] == [None] * 10 + ["length"]
    assert isinstance(items[-1], Result)
    assert items[-1].text == text


def test_events_tell_the_candidates_with_their_scores() -> None:
    seen: list[TokenEvent] = []
    method = ArgsGreedy(top_k=4, weight=2.0, prune=False)
    generate(small(), Request([1, 2], method, max_tokens=3), on_event=seen.append)
    for event in seen:
        assert len(event.candidates) == 4
        logits = [c.logit for c in event.candidates]
        assert logits == sorted(logits, reverse=True)
        assert all(c.score == c.logit + 2.0 * c.reward for c in event.candidates)
        best = max(event.candidates, key=lambda c: c.score)
        assert (event.token_id, event.reward) == (best.token_id, best.reward)


def test_closing_the_stream_ends_the_work() -> None:
    engine = small(eos_token_ids=())
    events = stream(engine, [Request([1], Plain(), max_tokens=50)])
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert len(engine.calls) == 2


def test_no_requests_give_no_results() -> None:
    engine = small()
    assert generate(engine, []) == []
    assert engine.calls == []


def test_text_prompts_share_the_arguments() -> None:
    results = generate(FakeEngine(), ["Hi", "Ho"], Plain(), max_tokens=3, seed=1)
    assert [r.prompt for r in results] == ["Hi", "Ho"]
    assert results[0].prompt_ids == tuple(b"Hi")


def test_a_prompt_of_token_ids_gets_its_text() -> None:
    assert generate(FakeEngine(), Request(list(b"Hi"), max_tokens=1))[0].prompt == "Hi"


def test_an_empty_prompt_starts_from_the_beginning_of_sequence_token() -> None:
    engine = FakeEngine(make_manifest(bos_token_id=7), tokenizer=ByteTokenizer())
    assert generate(engine, "", max_tokens=1)[0].prompt_ids == (7,)


@pytest.mark.parametrize("broken", ["logits", "reward"])
def test_numbers_that_are_not_finite_are_an_error(broken: str) -> None:
    class Broken(FakeEngine):
        def forward(self, *args):  # type: ignore[no-untyped-def]
            step = super().forward(*args)
            target = step.logits if broken == "logits" else step.signals["reward"]
            target[:] = np.nan
            return step

    with pytest.raises(EngineError, match="NaN"):
        generate(Broken(), "Hi")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 12))
def test_prefill_in_chunks_and_batches_equals_one_causal_pass(
    lengths: list[int], chunk: int
) -> None:
    engine = small()
    prompts = [[(i * 7 + b) % 15 + 1 for i in range(n)] for b, n in enumerate(lengths)]
    cache, step = prefill(engine, prompts, chunk)
    assert cache.lengths.tolist() == lengths
    for b, prompt in enumerate(prompts):
        expected = full_forward(engine, prompt)
        assert np.array_equal(step.logits[b, -1], expected.logits[0, 0])
        assert np.array_equal(step.signals["reward"][b, -1], expected.signals["reward"][0, 0])
