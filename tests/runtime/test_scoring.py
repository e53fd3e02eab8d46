"""L4: rewards of given texts: those that decoding reports for the same tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_export import (
    ArgsGreedy,
    Chat,
    Experts,
    Plain,
    Request,
    SegmentRejection,
    best_of,
    generate,
    load_engine,
    score,
    stream,
)
from otter_export.chat_template import ChatTemplate
from otter_export.errors import EngineError, RequestError
from otter_export.runtime.request import Result, TokenEvent
from otter_export.runtime.scheduler import Limits, Scheduler
from otter_export.runtime.scoring import step_ends
from otter_export.signals import Signal
from tests.runtime.fake_engine import ByteTokenizer, FakeEngine, make_manifest
from tests.runtime.tiny_model import make_model

NEXT = Signal("next", "q_value")
TONE = Signal("tone", "expert", "identity", None)
DRAFTS = Signal("drafts", "medusa", "identity", None, heads=2)


def fake(*signals: Signal, **options: object) -> FakeEngine:
    return FakeEngine(make_manifest(signals=signals, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("signal", "method"),
    [
        (Signal("reward"), ArgsGreedy(top_k=4, weight=2.0)),
        (NEXT, ArgsGreedy(top_k=4, weight=2.0)),
        (TONE, Experts(weight=0.5)),
    ],
)
def test_scores_are_what_decoding_reports_for_the_same_tokens(
    signal: Signal, method: ArgsGreedy | Experts
) -> None:
    """Exact: the fake engine's answer is a hash of what a token sees, however it is fed."""
    engine = fake(signal)
    results = generate(engine, ["The film", "A", "An opinion: "], method, max_tokens=9)
    pairs = [(r.prompt_ids, r.token_ids) for r in results]
    scored = list(score(engine, pairs))
    assert [s.rewards for s in scored] == [r.rewards for r in results]
    assert [s.reward for s in scored] == [r.rewards[-1] for r in results]
    assert [(s.prompt_ids, s.token_ids) for s in scored] == pairs


def test_an_engine_in_onnx_scores_as_it_generates(tmp_path: Path) -> None:
    """Sums of whole prompts and of single tokens differ in their last bits: 1e-6 of 1."""
    make_model(seed=3).save(tmp_path / "engine")
    engine = load_engine(tmp_path / "engine")
    results = generate(engine, ["a film", "the", "one two three"], max_tokens=20)
    for signal in ("reward", "future"):
        method = ArgsGreedy(signal=signal, weight=3.0)
        results = generate(engine, ["a film", "the", "one two three"], method, max_tokens=20)
        found = list(
            score(engine, [(r.prompt_ids, r.token_ids) for r in results], signals=[signal])
        )
        for result, scored in zip(results, found, strict=True):
            assert scored.rewards == pytest.approx(result.rewards, abs=1e-6)


@given(
    texts=st.lists(
        st.tuples(st.integers(0, 60), st.integers(1, 60)).filter(lambda sizes: sum(sizes) <= 100),
        min_size=1,
        max_size=12,
    ),
    places=st.integers(1, 5),
    chunk=st.integers(3, 64),
)
@settings(max_examples=25)
def test_neither_neighbours_nor_chunks_matter(
    texts: list[tuple[int, int]], places: int, chunk: int
) -> None:
    """Every text against the engine's answer for it alone, in one pass."""
    engine = fake(Signal("reward"), NEXT)
    generator = np.random.default_rng(len(texts))
    pairs = [tuple(generator.integers(1, 255, n).tolist() for n in sizes) for sizes in texts]
    scheduler = Scheduler(engine, Limits(max_batch_size=places, prefill_tokens=chunk))
    method = ArgsGreedy(top_k=1, weights={"reward": 1.0, "next": 1.0})
    results: dict[int, Result] = {}

    def take(event: object) -> None:
        assert isinstance(event, Result)
        results[event.request] = event

    for head, tail in pairs:
        request = Request([*head, *tail], method, max_tokens=0, rewards_from=len(head))
        scheduler.submit(request, on_event=take)
    while scheduler.step():
        pass
    assert scheduler.stats.completed == len(pairs)
    for number, (head, tail) in enumerate(pairs):
        ids = np.array([[*head, *tail]])
        size = ids.shape[1]
        step = engine.forward(
            engine.new_cache(1), ids, np.arange(size)[None], np.tri(size, dtype=bool)[None], size
        )
        found = results[number].prompt_rewards
        assert found is not None
        assert found.rewards == tuple(step.signals["reward"][0, len(head) :].tolist())
        expected = [None, *step.signals["next"][0, np.arange(size - 1), ids[0, 1:]].tolist()]
        assert found.signals["next"] == tuple(expected[len(head) :])


def test_the_prompt_is_scored_beside_what_is_generated() -> None:
    engine = fake(Signal("reward"))
    request = Request("The film", Plain(), max_tokens=3, rewards_from=2)
    events = list(stream(engine, request))
    (scored,) = score(engine, [("Th", "e film")])
    result = events[-1]
    assert isinstance(result, Result)
    assert result.prompt_rewards is not None
    assert result.prompt_rewards.rewards == scored.rewards
    tokens = [e.prompt_rewards for e in events if isinstance(e, TokenEvent)]
    assert tokens == [result.prompt_rewards, None, None]
    assert result.to_json()["prompt_rewards"] == scored.rewards
    (alone,) = generate(engine, Request("The film", Plain(), max_tokens=3))
    assert (result.token_ids, result.rewards) == (alone.token_ids, alone.rewards)
    assert "prompt_rewards" not in alone.to_json()


def test_prompt_and_response_are_tokenized_apart_and_bos_comes_once() -> None:
    class WithBos(ByteTokenizer):
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [1] * add_special_tokens + super().encode(text)

    engine = FakeEngine(make_manifest(bos_token_id=1), tokenizer=WithBos(special=(0, 1)))
    found = list(score(engine, [("ab", "c"), "abc", ([5], [6, 7]), ("\x01a", "b"), "\x01b"]))
    assert [(s.prompt_ids, s.token_ids) for s in found] == [
        ((1, 97, 98), (99,)),
        ((1,), (97, 98, 99)),
        ((5,), (6, 7)),
        ((1, 97), (98,)),
        ((1,), (98,)),
    ]


def test_an_answer_in_a_chat_is_scored_as_it_was_written() -> None:
    engine = fake(Signal("reward"))
    template = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }};{% endfor %}a:"
    engine.tokenizer.chat_template = ChatTemplate(template, {})
    chat = Chat.of("hi", system="be kind")
    (result,) = generate(engine, chat, max_tokens=6)
    (scored,) = score(engine, [(chat, result.token_ids)])
    assert bytes(scored.prompt_ids) == b"s:be kind;u:hi;a:"
    assert scored.rewards == result.rewards
    with pytest.raises(RequestError, match="a response is text or token ids; a chat is a prompt"):
        score(engine, [chat])  # type: ignore[list-item]


def test_signals_that_score_are_all_read_unless_some_are_named() -> None:
    engine = fake(DRAFTS, TONE, Signal("reward"), NEXT)
    (all_of_them,) = score(engine, [("a", "bc")])
    assert list(all_of_them.signals) == ["tone", "reward", "next"]
    assert all_of_them.rewards == all_of_them.signals["tone"]
    (some,) = score(engine, [("a", "bc")], signals=["next"])
    assert some.signals == {"next": all_of_them.signals["next"]}


def test_steps_end_with_the_token_that_completes_a_separator() -> None:
    engine = fake(Signal("reward"))
    (scored,) = score(engine, [("Q", "one\n\ntwo\n\nthree")], separator="\n\n")
    assert scored.steps is not None
    assert [(s.text, s.end) for s in scored.steps] == [
        ("one\n\n", 5),
        ("two\n\n", 10),
        ("three", 15),
    ]
    assert [s.reward for s in scored.steps] == [scored.rewards[i] for i in (4, 9, 14)]
    (ended,) = score(engine, [("Q", "one;")], separator=";")
    assert ended.steps is not None
    assert [s.text for s in ended.steps] == ["one;"]


@given(st.text("ab;", min_size=1, max_size=30), st.sampled_from([";", "ab", ";;"]))
def test_steps_add_up_to_the_text(text: str, separator: str) -> None:
    """The oracle: each byte is a token, so a step's end is its text's."""
    ids = list(text.encode())
    steps = step_ends(ids, ByteTokenizer(), separator)
    joined = "".join(step for step, _ in steps)
    assert text.startswith(joined)
    assert not text[len(joined) :].strip()
    ends = np.cumsum([len(step) for step, _ in steps]).tolist()
    assert [end for _, end in steps] == ends


def test_special_tokens_can_be_separators() -> None:
    tokenizer = ByteTokenizer(special=(0,))
    assert step_ends([97, 0, 98, 0], tokenizer, "<0>") == [("a<0>", 2), ("b<0>", 4)]


def test_texts_come_in_their_order_as_soon_as_they_are_there() -> None:
    engine = fake(Signal("reward"))
    texts = ["x" * n for n in (90, 3, 40, 4, 90, 5)]
    items = score(engine, texts, batch_size=2)
    first = next(items)
    calls = len(engine.calls)
    assert [first.index, *(s.index for s in items)] == list(range(6))
    assert len(engine.calls) > calls


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        ("abc", {}, "texts must be a sequence of texts"),
        ([("a", "")], {}, "text 1 of 1: the response has no tokens"),
        (["a", 5], {}, "text 2 of 2: a prompt must be text or a sequence of token ids, got 5"),
        (["a", ("a", "b", "c")], {}, "text 2 of 2: a prompt must be"),
        (["a", "a" * 129], {}, "prompt 2 of 2: the prompt has 129 tokens; the engine takes at"),
        ([[999]], {}, "the prompt has token id 999"),
        (["a"], {"separator": ""}, "separator must be a text of at least one"),
        (["a"], {"signals": "reward"}, "signals must be names of signals"),
        (["a"], {"signals": []}, "signals must be names of signals"),
        (["a"], {"batch_size": 0}, "batch_size must be an integer of at least 1"),
    ],
)
def test_mistakes_are_told_before_anything_is_scored(
    texts: object, options: dict[str, object], message: str
) -> None:
    engine = fake(Signal("reward"))
    with pytest.raises(RequestError, match=message):
        score(engine, texts, **options)  # type: ignore[arg-type]
    assert engine.calls == []


def test_signals_that_score_nothing_are_refused() -> None:
    with pytest.raises(RequestError, match=r"no signal that scores tokens; its signals: drafts"):
        score(fake(DRAFTS), ["a"])
    with pytest.raises(EngineError, match="no_such"):
        score(fake(Signal("reward")), ["a"], signals=["no_such"])


def test_the_whole_length_of_an_engine_can_be_scored() -> None:
    (scored,) = score(fake(Signal("reward")), ["a" * 128])
    assert len(scored.rewards) == 128


def test_a_value_that_is_not_finite_ends_its_text_alone() -> None:
    class Broken(FakeEngine):
        def _signal(self, signal: Signal, kept: list[list[bytes]]) -> np.ndarray:
            return np.full_like(super()._signal(signal, kept), np.nan)

    with pytest.raises(EngineError, match="reward that is NaN or infinite"):
        list(score(Broken(make_manifest()), ["ab"]))


def test_only_a_scheduler_reports_rewards_of_a_prompt() -> None:
    engine, request = fake(Signal("reward")), Request("ab", Plain(temperature=1.0), rewards_from=0)
    with pytest.raises(RequestError, match="best_of does not report rewards of the prompt"):
        best_of(engine, request, 2)
    with pytest.raises(RequestError, match="segment_rejection does not report rewards of the"):
        SegmentRejection(threshold=0.5).check(request)
    with pytest.raises(RequestError, match="max_tokens must be an integer of at least 1"):
        Request("ab", max_tokens=0)
    with pytest.raises(RequestError, match="rewards_from must be an integer of at least 0"):
        Request("ab", rewards_from=-1)
