"""L5: vLLM's own server on a checkpoint as it is: rewards in answers and in streams, status 400."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.plugins.vllm.asked import our_engine, our_tokens
from tests.plugins.vllm.checkpoints import checkpoint_of

pytestmark = pytest.mark.slow
#: Words of the tiny tokenizer.
PROMPT = "w5 w9 w20 w33 w7"
IDS = [5, 9, 20, 33, 7]
GUIDED = {"otter_signal": "next", "otter_weight": 4.0, "otter_rewards": 1}
#: Python's float and float32 of another order of sums.
TOLERANCE = 1e-4


class Server:
    """A running server.

    Args:
        port: On 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        self.port = port

    def ask(self, path: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON, or text."""
        status, text = self.raw(path, body)
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text.decode()

    def raw(self, path: str, body: Any = None) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        method = "GET" if body is None else "POST"
        content = body if isinstance(body, bytes) else json.dumps(body)
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, None if body is None else content, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()

    def stream(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The events of a stream."""
        status, text = self.raw(path, {**body, "stream": True})
        assert status == 200, text
        lines = [line[6:] for line in text.decode().split("\n\n") if line.startswith("data: ")]
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]


@pytest.fixture(scope="module")
def checkpoint(vllm_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = checkpoint_of("llama", tmp_path_factory.mktemp("server") / "checkpoint")
    settings = path / "tokenizer_config.json"
    # Of a chat nothing but its words.
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    data = json.loads(settings.read_text())
    settings.write_text(json.dumps({**data, "chat_template": template}))
    return path


@pytest.fixture(scope="module")
def server(
    checkpoint: Path,
    vllm_python: Path,
    vllm_environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("log") / "server.log"
    command = [
        *(vllm_python, "-m", "vllm.entrypoints.openai.api_server", "--model", checkpoint),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", "tiny"),
        *("--dtype", "float32", "--max-model-len", "128", "--max-num-seqs", "16"),
        *("--middleware", "otter_export.plugins.vllm.http_rewards.RewardsMiddleware"),
    ]
    environment = {**vllm_environment, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out)
    found = Server(port)
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()[-4000:]
            try:
                if found.raw("/health")[0] == 200:
                    break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail(f"no answer after five minutes: {log.read_text()[-4000:]}")
        yield found
    finally:
        process.terminate()
        process.wait(60)


def body(chat: bool = False, **fields: Any) -> dict[str, Any]:
    content = {"messages": [{"role": "user", "content": PROMPT}]} if chat else {"prompt": PROMPT}
    return {"model": "tiny", **content, "max_tokens": 6, "temperature": 0, **fields}


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> Any:
    return our_tokens(our_engine(checkpoint), IDS, {"signal": "next", "weight": 4.0}, 6)


def words(tokens: list[int]) -> list[str]:
    return [f"w{token}" for token in tokens]


def test_a_completion_has_its_rewards(server: Server, ours: Any) -> None:
    status, found = server.ask("/v1/completions", body(vllm_xargs=GUIDED))
    assert status == 200, found
    (choice,) = found["choices"]
    assert choice["text"].split() == words(ours.token_ids)
    assert choice["otter"]["rewards"] == pytest.approx(ours.rewards, abs=TOLERANCE)
    assert choice["logprobs"] is None


def test_a_chat_has_its_rewards(server: Server, ours: Any) -> None:
    status, found = server.ask("/v1/chat/completions", body(True, vllm_xargs=GUIDED))
    assert status == 200, found
    (choice,) = found["choices"]
    assert choice["message"]["content"].split() == words(ours.token_ids)
    assert choice["otter"]["rewards"] == pytest.approx(ours.rewards, abs=TOLERANCE)


@pytest.mark.parametrize("chat", [False, True])
def test_a_stream_has_a_reward_a_token(server: Server, ours: Any, chat: bool) -> None:
    path = "/v1/chat/completions" if chat else "/v1/completions"
    events = server.stream(path, body(chat, vllm_xargs=GUIDED))
    rewards = [
        reward
        for event in events
        for choice in event["choices"]
        for reward in choice.get("otter", {}).get("rewards", [])
    ]
    assert rewards == pytest.approx(ours.rewards, abs=TOLERANCE)
    assert len(events) >= len(rewards)  # none waited for the end


@pytest.mark.parametrize("chat", [False, True])
def test_logprobs_are_what_they_are_without_rewards(server: Server, chat: bool) -> None:
    path = "/v1/chat/completions" if chat else "/v1/completions"
    wanted = {"logprobs": True, "top_logprobs": 2} if chat else {"logprobs": 2}
    fields = {**wanted, "return_tokens_as_token_ids": True}
    _, plain = server.ask(path, body(chat, **fields))
    _, found = server.ask(path, body(chat, **fields, vllm_xargs={"otter_rewards": 1}))
    assert found["choices"][0]["logprobs"] == plain["choices"][0]["logprobs"]
    assert len(found["choices"][0]["otter"]["rewards"]) == 6
    assert "otter" not in plain["choices"][0]


def test_rewards_of_a_prompt(server: Server) -> None:
    arguments = {"otter_prompt_rewards": 1, "otter_signal": "next"}
    status, found = server.ask("/v1/completions", body(vllm_xargs=arguments))
    assert status == 200, found
    rewards = found["choices"][0]["otter"]["prompt_rewards"]
    assert rewards[0] is None
    assert len(rewards) == len(IDS)
    assert all(isinstance(reward, float) for reward in rewards[1:])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"otter_weight": "much"}, "otter_weight must be a finite number"),
        ({"otter_signal": "nobody", "otter_rewards": 1}, "the model has no reward 'nobody'"),
        ({"otter_wieght": 1}, "there is no otter_wieght"),
        ({"otter_weight": 1, "otter_signal": "reward"}, "--speculative-config"),
    ],
)
def test_bad_parameters_are_status_400(
    server: Server, arguments: dict[str, Any], message: str
) -> None:
    for path, chat in (("/v1/completions", False), ("/v1/chat/completions", True)):
        status, found = server.ask(path, body(chat, vllm_xargs=arguments))
        assert status == 400, found
        assert message in json.dumps(found)


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"vllm_xargs": 5}', b"\xff"])
def test_a_body_that_is_none_is_vllms_own_400(server: Server, content: bytes) -> None:
    status, _ = server.ask("/v1/completions", content)
    assert status in (400, 422)


def test_models_name_their_signals(server: Server) -> None:
    _, found = server.ask("/v1/models")
    signals = found["data"][0]["otter"]["signals"]
    assert [(s["name"], s["kind"]) for s in signals] == [
        ("reward", "value"),
        ("next", "q_value"),
        ("tone", "expert"),
    ]


def test_metrics_count_guided_requests_and_rewards(server: Server) -> None:
    def value(name: str) -> float:
        _, text = server.ask("/metrics")
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    names = ('otter_requests_total{guided="true"}', "otter_reward_count")
    before = [value(name) for name in names]
    server.ask("/v1/completions", body(vllm_xargs=GUIDED))
    assert [value(name) for name in names] == [before[0] + 1, before[1] + 6]


def test_requests_without_rewards_pass_as_they_are(server: Server) -> None:
    status, found = server.ask("/v1/completions", body())
    assert status == 200
    assert "otter" not in found["choices"][0]
