"""L5: a real server's answers are the library's, by every way in, alone and in a crowd."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from examples import triton_client
from examples.triton_client import Response
from otter_export import generate
from otter_export.runtime.request import TokenEvent
from tests.serving.server.cases import CASES, PROMPT, Case, as_list, check_answer, mixed
from tests.serving.server.running import Library, Served, live_page

pytestmark = pytest.mark.slow

Send = Callable[[Served, dict[str, Any]], list[Response]]


def by_grpc(served: Served, fields: dict[str, Any]) -> list[Response]:
    return list(triton_client.stream_grpc(served.grpc, fields, timeout_seconds=60))


def by_stream(served: Served, fields: dict[str, Any]) -> list[Response]:
    return list(triton_client.stream_http(served.http, fields, timeout_seconds=60))


def by_generate(served: Served, fields: dict[str, Any]) -> list[Response]:
    return [triton_client.generate(served.http, fields, timeout_seconds=60)]


@pytest.mark.parametrize("name", CASES)
def test_every_way_in_gives_the_librarys_answer(
    served: Served, library: Library, name: str
) -> None:
    case = CASES[name]
    expected = library.alone(case.request)
    for send in (by_grpc, by_stream):
        streamed = send(served, case.renamed(stream=True))
        assert len(streamed) == len(expected.token_ids)
        check_answer(streamed, expected)
    for send in (by_grpc, by_generate):
        (whole,) = send(served, case.renamed(stream=False))
        check_answer([whole], expected)


def test_the_cases_end_in_every_way(library: Library) -> None:
    """Otherwise the comparison would not show that stop words and the end of text work."""
    reasons = {name: library.alone(case.request).finish_reason for name, case in CASES.items()}
    assert reasons["stop word"] == "stop"
    assert reasons["end of text"] == "eos"
    assert reasons["guided"] == "length"


def test_the_weight_changes_the_answer(served: Served) -> None:
    texts = {
        weight: triton_client.generate(
            served.http, {"text_input": PROMPT, "max_tokens": 32, "reward_weight": weight}
        )
        for weight in (-4.0, 0.0, 4.0)
    }
    means = {w: sum(answer["reward"]) / len(answer["reward"]) for w, answer in texts.items()}
    assert means[-4.0] < means[0.0] < means[4.0]


def test_candidates_come_with_their_scores(served: Served, library: Library) -> None:
    case = CASES["guided"]
    events: list[TokenEvent] = []
    generate(library.engine, case.request, on_event=events.append)
    fields = case.renamed(stream=True, return_candidates=True)
    for response, event in zip(by_stream(served, fields), events, strict=True):
        assert as_list(response["candidate_counts"]) == [len(event.candidates)]
        assert as_list(response["candidate_ids"]) == [c.token_id for c in event.candidates]
        for name, values in {
            "candidate_logits": [c.logit for c in event.candidates],
            "candidate_rewards": [c.reward for c in event.candidates],
            "candidate_scores": [c.score for c in event.candidates],
        }.items():
            assert as_list(response[name]) == pytest.approx(values, rel=1e-5, abs=1e-6)
    (whole,) = by_generate(served, case.renamed(return_candidates=True))
    assert whole["candidate_counts"] == [len(event.candidates) for event in events]
    assert len(whole["candidate_ids"]) == sum(whole["candidate_counts"])


def test_tokens_come_while_the_rest_is_being_generated(served: Served) -> None:
    """A stream that was collected first would be complete when its first token comes."""
    before = served.wait_idle()["otter_tokens_total"]
    fields = {"text_input": PROMPT, "stream": True, "max_tokens": 1000}
    stream = triton_client.stream_http(served.http, fields)
    assert next(stream)["finish_reason"] == ""
    stream.close()
    assert served.wait_idle()["otter_tokens_total"] - before < 900


def answers(served: Served, cases: list[Case], name: str) -> list[list[Response]]:
    """Send all cases at once over one connection; a stream each."""
    from examples.triton_async import AsyncClient

    async def one(client: AsyncClient, index: int, case: Case) -> list[Response]:
        fields = case.renamed(stream=bool(index % 4))
        # More time than all of them take: nothing here may hang for ever.
        stream = client.stream(fields, request_id=f"{name}-{index}", timeout_seconds=120)
        return [response async for response in stream]

    async def everybody() -> list[list[Response]]:
        async with AsyncClient(served.grpc) as client:
            return await asyncio.gather(*(one(client, i, c) for i, c in enumerate(cases)))

    return asyncio.run(everybody())


def test_200_at_once_get_the_answers_that_they_get_alone(served: Served, library: Library) -> None:
    cases = mixed(200, seed=1)
    expected = [library.alone(case.request) for case in cases]
    for responses, result in zip(answers(served, cases, "crowd"), expected, strict=True):
        check_answer(responses, result)
    served.wait_idle()


def test_threads_of_http_clients_are_served_side_by_side(served: Served, library: Library) -> None:
    cases = mixed(24, seed=2)
    found: dict[int, list[Response]] = {}

    def one(index: int) -> None:
        found[index] = by_generate(served, cases[index].fields)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for index, case in enumerate(cases):
        check_answer(found[index], library.alone(case.request))


@pytest.mark.parametrize("transport", ["grpc", "generate_stream", "generate"])
def test_the_example_client(
    served: Served, library: Library, repository: Path, transport: str
) -> None:
    case = CASES["sampled"]
    options = ["--method", "args-stochastic", "--weight", "2.5", "--top-k", "6", "--seed"]
    options += [str(2**63 + 1), "--temperature", "0.7", "--top-p", "0.9", "--max-tokens", "24"]
    done = example(
        "triton_client.py", served, "--transport", transport, "--prompt", PROMPT, *options
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == library.alone(case.request).text + "\n"


def example(script: str, served: Served, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = Path(triton_client.__file__).with_name(script)
    addresses = ["--http", served.http, "--grpc", served.grpc]
    command = [sys.executable, str(path), *addresses, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_example_client_shows_an_error_as_one_line(served: Served) -> None:
    for transport in ("grpc", "generate_stream", "generate"):
        done = example(
            "triton_client.py", served, "--prompt", "ŵ3", "--top-k", "0", "--transport", transport
        )
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.startswith("error: top_k must be"), done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_the_live_page_passes_tokens_on(served: Served, library: Library) -> None:
    case = CASES["guided"]
    tokenizer = served.engine_directory / "tokenizer.json"
    with live_page(served.http, tokenizer) as address:
        page = urllib.request.urlopen(address, timeout=30).read().decode()
        assert "/v1/completions" in page
        responses = events(address, case.renamed(stream=True, return_candidates=True))
        check_answer(responses, library.alone(case.request))
        texts = as_list(responses[0]["candidate_texts"])
        assert texts[0].startswith("ŵ") and len(texts) == responses[0]["candidate_counts"]
        assert "top_k must be" in events(address, case.renamed(stream=True, top_k=0))[0]["error"]
        fields = case.renamed(stream=True, return_candidates=True)
        fields["prompt"] = fields.pop("text_input")
        pieces = [p["choices"][0]["otter"] for p in events(address, fields, "/v1/completions")]
        expected = library.alone(case.request)
        assert [i for p in pieces for i in p["token_ids"]] == list(expected.token_ids)
        assert pieces[0]["candidates"][0][0]["text"] == texts[0]
        assert pieces[-1]["finish_reason"] == expected.finish_reason


def events(address: str, fields: dict[str, Any], path: str = "/generate_stream") -> list[Response]:
    """Server-sent events of the live page; an error's status does not matter here."""
    request = urllib.request.Request(f"{address}{path}", json.dumps(fields).encode())
    try:
        lines = urllib.request.urlopen(request, timeout=60).read()
    except urllib.error.HTTPError as error:
        lines = error.read()
    found = [line[5:] for line in lines.splitlines() if line.startswith(b"data:")]
    return [json.loads(text) for text in found if text.strip() != b"[DONE]"]


def test_the_server_says_what_it_serves(served: Served) -> None:
    with urllib.request.urlopen(f"http://{served.http}/v2/models/otter/config") as reply:
        parameters = json.loads(reply.read())["parameters"]
    assert parameters["ENGINE_PRECISION"]["string_value"] == "fp32"
    assert "reward" in parameters["ENGINE_SIGNALS"]["string_value"]
