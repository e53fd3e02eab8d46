"""L4: the model of Triton's Python backend with a fake engine: its answers are the library's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from otter_export import ArgsGreedy, ArgsStochastic, Plain, generate, score
from otter_export.runtime.request import Result
from otter_export.signals import Signal
from tests.runtime.fake_engine import FakeEngine, make_manifest
from tests.serving.answers import outputs
from tests.serving.conftest import Serve


def alone(engine: FakeEngine, prompt: str, *arguments: Any, **options: Any) -> Result:
    """What the library gives for the same request."""
    return generate(FakeEngine(engine.manifest), prompt, *arguments, **options)[0]


REQUESTS = [
    ({"reward_weight": 2.5, "top_k": 4}, ArgsGreedy(weight=2.5, top_k=4)),
    ({"temperature": 0.0}, ArgsGreedy()),
    ({"method": "plain"}, Plain()),
    ({"temperature": 0.7, "seed": 3}, ArgsStochastic(temperature=0.7)),
    ({"method": "plain", "temperature": 1.5, "top_p": 0.9, "top_k": 12, "seed": 2**63}, None),
]


@pytest.mark.parametrize(("fields", "method"), REQUESTS)
def test_answers_are_those_of_the_library(
    serve: Serve, fields: dict[str, Any], method: Any
) -> None:
    served = serve()
    method = method or Plain(temperature=1.5, top_p=0.9, top_k=12)
    expected = alone(
        served.engine, "The film", method, max_tokens=24, stop=("zz",), seed=fields.get("seed")
    )
    common = {"text_input": "The film", "max_tokens": 24, "stop_words": ["zz"], **fields}
    whole = outputs(served.ask(**common).wait()[0])
    assert whole == {
        "text_output": [expected.text],
        "token_id": list(expected.token_ids),
        "reward": pytest.approx(expected.rewards, rel=1e-7),  # FP32 tensors of FP32 values
        "finish_reason": [expected.finish_reason],
    }
    stream = [outputs(r) for r in served.ask(stream=True, **common).wait()]
    assert "".join(r["text_output"][0] for r in stream) == expected.text
    assert [r["token_id"][0] for r in stream] == list(expected.token_ids)
    assert [r["finish_reason"][0] for r in stream[:-1]] == [""] * (len(stream) - 1)
    assert stream[-1]["finish_reason"] == [expected.finish_reason]


def test_token_ids_are_a_prompt_too(serve: Serve) -> None:
    served = serve()
    text = outputs(served.ask(text_input="abc", max_tokens=5).wait()[0])
    ids = outputs(served.ask(input_ids=list(b"abc"), max_tokens=5).wait()[0])
    assert text == ids


def test_candidates_come_with_logits_rewards_and_scores(serve: Serve) -> None:
    served = serve()
    asked = {"text_input": "abc", "max_tokens": 6, "top_k": 4, "return_candidates": True}
    whole = outputs(served.ask(**asked).wait()[0])
    stream = [outputs(r) for r in served.ask(stream=True, **asked).wait()]
    for name in ("ids", "logits", "rewards", "scores", "counts"):
        key = f"candidate_{name}"
        assert whole[key] == [value for response in stream for value in response[key]]
    assert sum(whole["candidate_counts"]) == len(whole["candidate_ids"])
    logits, rewards = (np.array(whole[f"candidate_{n}"]) for n in ("logits", "rewards"))
    # float64 sums of values that travelled as float32: exact.
    assert np.array_equal(logits + rewards, whole["candidate_scores"])
    starts = np.cumsum([0, *whole["candidate_counts"][:-1]])
    for start, count, token in zip(
        starts, whole["candidate_counts"], whole["token_id"], strict=True
    ):
        best = start + int(np.argmax(whole["candidate_scores"][start : start + count]))
        assert whole["candidate_ids"][best] == token


def test_values_of_several_signals_come_by_token(serve: Serve) -> None:
    mild = Signal("mild", kind="q_value", activation="sigmoid", bounds=(0.0, 1.0))
    served = serve(FakeEngine(make_manifest(signals=(Signal("reward"), mild))))
    asked = {"text_input": "abc", "max_tokens": 6, "weights": ["mild=3", "reward=1"]}
    method = ArgsGreedy(weights={"mild": 3.0, "reward": 1.0})
    expected = alone(served.engine, "abc", method, max_tokens=6).signals
    whole = outputs(served.ask(**asked).wait()[0])
    assert whole["signal_names"] == ["mild", "reward"] == list(expected)
    values = list(zip(expected["mild"], expected["reward"], strict=True))
    assert whole["signal_values"] == [value for token in values for value in token]
    assert whole["signal_values"][::2] == whole["reward"]
    stream = [outputs(r) for r in served.ask(stream=True, **asked).wait()]
    assert [tuple(r["signal_values"]) for r in stream] == values
    assert all(r["signal_names"] == ["mild", "reward"] for r in stream)
    # One that reads a single signal, of the same engine, has what it always had.
    one = outputs(served.ask(text_input="abc", max_tokens=6).wait()[0])
    assert list(one) == ["text_output", "token_id", "reward", "finish_reason"]


def test_a_crowd_gets_the_answers_of_each_alone(serve: Serve) -> None:
    served = serve(max_batch_size=4)
    asked = [
        {"text_input": f"prompt {i}", "max_tokens": 3 + i, "top_k": 1 + i % 5, "seed": i}
        | ({"temperature": 0.5 + i / 10} if i % 3 else {})
        for i in range(12)
    ]
    solo = [outputs(served.ask(**fields).wait()[0]) for fields in asked]
    crowd = [served.ask(stream=bool(i % 2), **fields) for i, fields in enumerate(asked)]
    for expected, sender in zip(solo, crowd, strict=True):
        got = [outputs(r) for r in sender.wait()]
        assert [t for r in got for t in r["token_id"]] == expected["token_id"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_prompt_is_scored_and_nothing_generated(serve: Serve, stream: bool) -> None:
    signals = (Signal("reward"), Signal("next", kind="q_value"))
    served = serve(FakeEngine(make_manifest(signals=signals)))
    weights = ["reward=1", "next=1"]
    asked = {"text_input": "The film", "max_tokens": 0, "return_rewards": True, "weights": weights}
    (response,) = served.ask(stream=stream, **asked).wait()
    found = outputs(response)
    (expected,) = score(FakeEngine(served.engine.manifest), ["The film"])
    assert found["token_id"] == found["reward"] == []
    assert (found["text_output"], found["finish_reason"]) == ([""], ["length"])
    assert found["prompt_reward"] == pytest.approx(expected.rewards, rel=1e-7)
    assert found["signal_names"] == ["reward", "next"]
    values = np.array(found["prompt_signal_values"]).reshape(-1, 2)
    assert np.array_equal(values[:, 0], found["prompt_reward"])
    assert np.isnan(values[0, 1])
    assert values[1:, 1].tolist() == pytest.approx(expected.signals["next"][1:], rel=1e-7)


def test_rewards_of_the_prompt_come_with_the_first_token(serve: Serve) -> None:
    served = serve()
    asked = {"text_input": "The film", "max_tokens": 3, "return_rewards": True}
    whole = outputs(served.ask(**asked).wait()[0])
    first, *others = [outputs(r) for r in served.ask(stream=True, **asked).wait()]
    (expected,) = score(FakeEngine(served.engine.manifest), ["The film"])
    assert whole["prompt_reward"] == first["prompt_reward"]
    assert first["prompt_reward"] == pytest.approx(expected.rewards, rel=1e-7)
    assert all("prompt_reward" not in response for response in others)
