"""L5: OpenAI's API before a real tritonserver, by `otter-export serve --triton`."""

from __future__ import annotations

import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from otter_export import Chat, Request
from otter_export.web.upstream import EngineFront, Upstream
from tests.chat_templates import WORDS
from tests.serving.server.cases import CASES, LONG, PROMPT
from tests.serving.server.running import Library, Served
from tests.web.running import NAME, Server, serving, wait_for
from tools.tritonserver.server import HOST, free_ports

COMPLETIONS = "/v1/completions"
#: The tiny engine's words are not ASCII.
TEMPLATE = WORDS.replace("w", "ŵ")


@pytest.fixture(scope="module")
def front(engine_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineFront:
    """What is read of the engine, and a chat template beside it."""
    directory = tmp_path_factory.mktemp("front") / "engine"
    shutil.copytree(engine_directory, directory)
    (directory / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    return EngineFront(directory)


@pytest.fixture(scope="module")
def server(served: Served, front: EngineFront) -> Iterator[Server]:
    with serving(front, scheduler=Upstream(front, served.http, "otter", 8)) as server:
        yield server


def body_of(fields: dict[str, Any]) -> dict[str, Any]:
    renamed = {"text_input": "prompt", "input_ids": "prompt", "stop_words": "stop"}
    return {renamed.get(name, name): value for name, value in fields.items()}


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_every_request_gets_the_librarys_answer(
    server: Server, library: Library, name: str, stream: bool
) -> None:
    case = CASES[name]
    expected, body = library.alone(case.request), body_of(case.fields)
    if stream:
        *pieces, end = server.events(COMPLETIONS, body)
        assert end == "[DONE]"
        choices = [piece["choices"][0] for piece in pieces]
    else:
        status, answer = server.call(COMPLETIONS, body)
        assert status == 200, answer
        choices = answer["choices"]
        assert answer["usage"]["prompt_tokens"] == len(expected.prompt_ids)
    found = [choice["otter"] for choice in choices]
    assert [t for otter in found for t in otter["token_ids"]] == list(expected.token_ids)
    assert "".join(choice["text"] for choice in choices) == expected.text
    rewards = [r for otter in found for r in otter["rewards"]]
    assert rewards == pytest.approx(expected.rewards, abs=1e-6)
    assert found[-1]["finish_reason"] == expected.finish_reason
    if len(expected.signals) > 1:
        for signal, values in expected.signals.items():
            got = [v for otter in found for v in otter["signals"][signal]]
            assert got == pytest.approx(values, abs=1e-6)


@pytest.mark.slow
def test_openai_client_chats(server: Server, library: Library, front: EngineFront) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    messages = [{"role": "system", "content": "ŵ5"}, {"role": "user", "content": "ŵ20 ŵ21"}]
    ids = Chat(tuple(messages)).token_ids(front.tokenizer)  # type: ignore[arg-type]
    expected = library.alone(Request(ids, max_tokens=6))
    stream = client.chat.completions.create(
        model=NAME,
        messages=messages,
        max_tokens=6,
        stream=True,
        extra_body={"return_candidates": True},
    )
    pieces = [piece.choices[0] for piece in stream]
    assert "".join(piece.delta.content for piece in pieces) == expected.text
    rewards = [reward for piece in pieces for reward in piece.otter["rewards"]]
    assert rewards == pytest.approx(expected.rewards, abs=1e-6)
    assert pieces[0].otter["candidates"][0][0]["text"].startswith("ŵ")
    with pytest.raises(openai.BadRequestError, match="there is no field"):
        client.chat.completions.create(model=NAME, messages=messages, extra_body={"topk": 3})


@pytest.mark.slow
@pytest.mark.parametrize("tokens", [0, 2])
def test_rewards_of_the_prompt(server: Server, library: Library, tokens: int) -> None:
    expected = library.alone(Request(PROMPT, max_tokens=tokens, rewards_from=0)).prompt_rewards
    body = {"prompt": PROMPT, "max_tokens": tokens, "return_rewards": True}
    status, answer = server.call(COMPLETIONS, body)
    assert status == 200 and expected is not None
    found = answer["choices"][0]["otter"]["prompt_rewards"]
    assert found == pytest.approx(expected.rewards, abs=1e-6)
    first = server.events(COMPLETIONS, body)[0]["choices"][0]["otter"]
    assert first["prompt_rewards"] == found


@pytest.mark.slow
def test_mistakes_deadlines_and_who_goes_away(server: Server, served: Served) -> None:
    status, answer = server.call(COMPLETIONS, {"prompt": PROMPT, "signal": "no"})
    assert status == 400 and "no" in answer["error"]["message"]
    long = body_of(LONG) | {"stream": False, "min_tokens": 900}
    status, answer = server.call(COMPLETIONS, long | {"deadline_ms": 100})
    assert status == 504, answer
    before = served.metrics()["otter_requests_total cancelled"]
    with pytest.raises(TimeoutError):
        import http.client

        link = http.client.HTTPConnection("127.0.0.1", server.port, timeout=0.3)
        link.request("POST", COMPLETIONS, json.dumps(long))
        link.getresponse()
    link.close()
    wait_for(lambda: server.stats.cancelled == 1)
    served.wait_for(lambda m: m["otter_requests_total cancelled"] == before + 1)
    assert server.idle().running == 0


# Before stand-ins


def test_a_triton_that_is_not_there(front: EngineFront) -> None:
    upstream = Upstream(front, f"{HOST}:{free_ports().http}", "otter", 8)
    with serving(front, scheduler=upstream) as server:
        status, answer = server.call(COMPLETIONS, {"prompt": PROMPT})
        assert status == 500 and "does not answer" in answer["error"]["message"]


class Odd(http.server.BaseHTTPRequestHandler):
    """Answers with whatever its server has."""

    def do_POST(self) -> None:
        status, content = self.server.answer  # type: ignore[attr-defined]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        ((200, b""), 500, "broke the answer off"),
        ((200, b'data: {"token_id": 3, "text_output": "x"}\n\n'), 500, "broke the answer off"),
        ((200, b"data: {"), 500, "cannot be read"),
        ((200, b"data: []"), 500, "cannot be read"),
        ((200, b'data: {"token_id": 3, "candidate_ids": [1, 2]}'), 500, "cannot be read"),
        ((400, b'{"error": "top_k must be less"}'), 400, "top_k must be less"),
        ((400, b'{"error": "9 requests wait already"}'), 429, "wait already"),
        ((503, b'{"error": "not ready"}'), 429, "not ready"),
        ((500, b'{"error": "the engine failed"}'), 500, "the engine failed"),
        ((404, b"<html>"), 500, "cannot be read"),
    ],
)
def test_odd_answers(
    front: EngineFront, answer: tuple[int, bytes], status: int, message: str
) -> None:
    upstream = http.server.HTTPServer((HOST, 0), Odd)
    upstream.answer = answer  # type: ignore[attr-defined]
    thread = threading.Thread(target=upstream.serve_forever, daemon=True)
    thread.start()
    try:
        address = f"{HOST}:{upstream.server_port}"
        with serving(front, scheduler=Upstream(front, address, "otter", 8)) as server:
            found, content = server.call(COMPLETIONS, {"prompt": PROMPT})
    finally:
        upstream.shutdown()
        thread.join()
        upstream.server_close()
    assert (found, message in content["error"]["message"]) == (status, True), content
