"""L5: what an operator relies on: places freed, deadlines, limits, metrics, logs."""

from __future__ import annotations

import concurrent.futures
import json

import pytest

from examples import triton_client
from examples.triton_client import ServerError
from tests.serving.server.cases import CASES, LONG, PROMPT, TOKENS, as_list, check_answer
from tests.serving.server.conftest import SMALL_QUEUE
from tests.serving.server.running import Library, Served, ask, grown

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("way", ["grpc", "generate_stream", "whole answer by grpc"])
def test_a_client_that_goes_away_frees_its_place(served: Served, way: str) -> None:
    before = served.wait_idle()
    if way == "generate_stream":
        stream = triton_client.stream_http(served.http, LONG)
        assert [next(stream)["finish_reason"] for _ in range(3)] == [""] * 3
        stream.close()
    elif way == "grpc":
        stream = triton_client.stream_grpc(served.grpc, LONG)
        assert [next(stream)["finish_reason"] for _ in range(3)] == [""] * 3
        stream.close()
    else:
        impatient = triton_client.stream_grpc(
            served.grpc, {**LONG, "stream": False}, timeout_seconds=0.2
        )
        with pytest.raises(ServerError, match=r"no answer for 0\.2 s"):
            next(impatient)
    after = served.wait_idle()
    assert grown(before, after, "otter_requests_total cancelled") == 1
    assert 0 < grown(before, after, "otter_tokens_total") < TOKENS


def test_a_dropped_generate_runs_to_its_end(served: Served) -> None:
    """The server does not tell the model that this client is gone; its place is free in the end."""
    before = served.wait_idle()
    with pytest.raises(ServerError, match="timed out"):
        triton_client.generate(served.http, {**LONG, "stream": False}, timeout_seconds=0.2)
    served.wait_for(lambda m: grown(before, m, "otter_requests_total completed") == 1)
    assert grown(before, served.wait_idle(), "otter_tokens_total") == TOKENS


def test_a_deadline_ends_a_request_with_an_error(served: Served, library: Library) -> None:
    before = served.wait_idle()
    with pytest.raises(ServerError, match="seconds were over"):
        ask(served, {**LONG, "stream": False, "deadline_ms": 60})
    with pytest.raises(ServerError, match="seconds were over"):
        list(triton_client.stream_grpc(served.grpc, {**LONG, "deadline_ms": 100}))
    after = served.wait_idle()
    assert grown(before, after, "otter_requests_total expired") == 2
    assert grown(before, after, "otter_tokens_total") < TOKENS
    # A deadline that is kept changes nothing.
    case = CASES["guided"]
    check_answer([ask(served, case.renamed(deadline_ms=60_000))], library.alone(case.request))


def test_a_full_queue_refuses_at_once(served: Served) -> None:
    """One is decoded, two wait, and the others hear so; those that were accepted are answered."""
    before = served.wait_idle("small")
    fields = {**LONG, "stream": False, "max_tokens": 600}
    count = 8
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(ask, served, fields, "small") for _ in range(count)]
        outcomes = [future.exception() or future.result() for future in futures]
    errors = [str(outcome) for outcome in outcomes if isinstance(outcome, ServerError)]
    answers = [outcome for outcome in outcomes if isinstance(outcome, dict)]
    assert len(errors) + len(answers) == count
    assert len(answers) >= 1 + SMALL_QUEUE and len(errors) >= 1
    assert all(
        "requests wait already" in error and len(error.splitlines()) == 1 for error in errors
    )
    assert len({answer["text_output"] for answer in answers}) == 1
    after = served.wait_idle("small")
    assert grown(before, after, "otter_rejected_total queue_full") == len(errors)
    assert grown(before, after, "otter_requests_total completed") == len(answers)


def test_every_metric_is_there_and_counts(served: Served, library: Library) -> None:
    from otter_export.serving.metrics import COUNTERS, GAUGES, HISTOGRAMS

    before = served.wait_idle()
    names = {name.split()[0] for name in before}
    parts = {f"{name}_{part}" for name in HISTOGRAMS for part in ("bucket", "sum", "count")}
    assert names == {*COUNTERS, *GAUGES, *parts}
    cases = [CASES["guided"], CASES["plain"], CASES["stop word"]]
    results = [library.alone(case.request) for case in cases]
    for case in cases:
        ask(served, case.fields)
    with pytest.raises(ServerError, match="top_k"):
        ask(served, {"text_input": PROMPT, "top_k": 0})
    after = served.wait_idle()
    tokens = sum(len(result.token_ids) for result in results)
    expected = {
        "otter_requests_total completed": 3,
        "otter_requests_total cancelled": 0,
        "otter_rejected_total invalid": 1,
        "otter_prompt_tokens_total": sum(len(result.prompt_ids) for result in results),
        "otter_tokens_total": tokens,
        # One pass per token, and one per prompt, since they came one after the other.
        "otter_forwards_total": sum(result.forwards for result in results) + 3,
        "otter_reward_sum": pytest.approx(sum(sum(r.rewards) for r in results), abs=1e-4),
        "otter_time_to_first_token_seconds_count": 3,
        "otter_time_per_token_seconds_count": tokens - 3,
        "otter_time_per_token_seconds_bucket +Inf": tokens - 3,
        "otter_request_seconds_count": 3,
    }
    assert {name: grown(before, after, name) for name in expected} == expected
    assert grown(before, after, "otter_candidates_total") > tokens
    assert 0 < grown(before, after, "otter_request_seconds_sum") < 60
    assert after["otter_mean_reward"] == pytest.approx(
        after["otter_reward_sum"] / after["otter_tokens_total"]
    )


def test_the_log_has_a_line_of_json_per_request_and_no_prompts(served: Served) -> None:
    fields = {"text_input": "ŵ77 ŵ78", "max_tokens": 2}
    responses = list(triton_client.stream_grpc(served.grpc, fields, request_id="a-good-one"))
    with pytest.raises(ServerError):
        bad = {**fields, "top_k": 0}
        list(triton_client.stream_grpc(served.grpc, bad, request_id="a-bad-one"))
    served.wait_idle()
    text = served.server.log.read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert len(lines) == text.count('"event": ')
    by_id = {line["request_id"]: line for line in lines if "request_id" in line}
    good, bad_line = by_id["a-good-one"], by_id["a-bad-one"]
    assert (good["event"], good["level"], good["model"]) == ("completed", "info", "otter")
    assert (good["tokens"], good["prompt_tokens"], good["finish_reason"]) == (2, 2, "length")
    rewards = [reward for one in responses for reward in as_list(one["reward"])]
    assert good["mean_reward"] == pytest.approx(sum(rewards) / 2, abs=1e-5)
    assert bad_line["event"] == "rejected" and bad_line["error"].startswith("top_k must be")
    # No word of a prompt or of a text, neither as it is nor as JSON escapes it.
    assert "ŵ" not in text and "\\u0175" not in text
