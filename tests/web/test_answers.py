"""L5: the server's answers, by OpenAI's own client and as bytes; the same tokens as `generate`."""

from __future__ import annotations

from typing import Any

import pytest

from otter_export import ArgsGreedy, ArgsStochastic, Chat, Plain, Request, generate
from otter_export.runtime.engine import Engine
from tests.web.running import NAME, Server

CHAT = [{"role": "system", "content": "w5"}, {"role": "user", "content": "w20 w21"}]


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


def test_openai_client_completions(client: Any, engine: Engine) -> None:
    answer = client.completions.create(
        model=NAME, prompt="w20 w21", max_tokens=6, extra_body={"reward_weight": 3, "top_k": 4}
    )
    expected = generate(engine, "w20 w21", ArgsGreedy(weight=3, top_k=4), max_tokens=6)[0]
    choice = answer.choices[0]
    assert choice.text == expected.text and choice.finish_reason == "length"
    assert choice.otter["token_ids"] == list(expected.token_ids)
    assert choice.otter["rewards"] == pytest.approx(expected.rewards, abs=1e-6)
    assert "".join(choice.otter["texts"]) == choice.text
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (2, 6)


def test_openai_client_streams_a_chat(client: Any, engine: Engine) -> None:
    options = {"include_usage": True}
    stream = client.chat.completions.create(
        model=NAME, messages=CHAT, stream=True, max_completion_tokens=6, stream_options=options
    )
    pieces = list(stream)
    expected = generate(engine, Chat(tuple(CHAT)), max_tokens=6)[0]
    *tokens, last = pieces
    assert "".join(p.choices[0].delta.content for p in tokens) == expected.text
    assert [r for p in tokens for r in p.choices[0].otter["rewards"]] == pytest.approx(
        expected.rewards, abs=1e-6
    )
    assert [p.choices[0].delta.role for p in tokens] == ["assistant", *[None] * (len(tokens) - 1)]
    assert tokens[-1].choices[0].finish_reason == "length" and last.choices == []
    assert last.usage.prompt_tokens == len(expected.prompt_ids)


def test_openai_client_hears_of_errors(client: Any) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="there is no field 'reward_wieght'") as caught:
        client.completions.create(model=NAME, prompt="w3", extra_body={"reward_wieght": 2})
    assert caught.value.param == "reward_wieght"  # type: ignore[attr-defined]
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt'; it is 'otter'"):
        client.completions.create(model="gpt", prompt="w3")
    assert client.models.list().data[0].id == client.models.retrieve(NAME).id == NAME


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize(
    ("fields", "method"),
    [
        ({}, ArgsGreedy()),
        ({"method": "plain", "temperature": 0.8}, Plain(temperature=0.8)),
        ({"temperature": 0.7, "gate": 1.5}, ArgsStochastic(temperature=0.7, gate=1.5)),
        ({"weights": ["reward=2"], "minimum": ["reward=-0.5"]}, None),
        ({"drafts": "lookup", "presence_penalty": 0.5, "stop": ["w2"], "min_tokens": 2}, None),
        ({"stop": "w9", "repetition_penalty": 1.5, "banned_tokens": [9, 10]}, None),
    ],
)
def test_the_same_as_generate(
    server: Server, engine: Engine, path: str, fields: dict[str, Any], method: Any, stream: bool
) -> None:
    from otter_export.runtime.prompt_file import Defaults

    prompt = Chat(tuple(CHAT)) if "chat" in path else "w20 w21"
    what = {"messages": CHAT} if "chat" in path else {"prompt": "w20 w21"}
    body = {**what, "max_tokens": 8, "seed": 3, **fields}
    if method is None:
        given = dict(fields)
        for name in ("weights", "minimum"):
            if name in given:
                given[name] = {"reward": float(given[name][0].partition("=")[2])}
        request = Defaults().request_for(prompt, {**given, "max_tokens": 8, "seed": 3})
    else:
        request = Request(prompt, method, max_tokens=8, seed=3)
    expected = generate(engine, request)[0]
    if stream:
        *pieces, end = server.events(path, body)
        assert end == "[DONE]"
        choices = [piece["choices"][0] for piece in pieces]
        tokens = [token for choice in choices for token in choice["otter"]["token_ids"]]
        text = "".join(c.get("text", c.get("delta", {}).get("content")) for c in choices)
        reason = choices[-1]["otter"]["finish_reason"]
    else:
        status, answer = server.call(path, body)
        assert status == 200, answer
        choice = answer["choices"][0]
        tokens, reason = choice["otter"]["token_ids"], choice["otter"]["finish_reason"]
        text = choice.get("text", choice.get("message", {}).get("content"))
    assert tokens == list(expected.token_ids)
    assert text == expected.text and reason == expected.finish_reason


def test_token_ids_candidates_and_neutral_fields(server: Server) -> None:
    body = {
        "prompt": [20, 21],
        "max_tokens": 3,
        "top_k": 3,
        "return_candidates": True,
        "n": 1,
        "user": "me",
        "logit_bias": {},
        "suffix": None,
        "stream_options": None,
    }
    status, answer = server.call("/v1/completions", body)
    assert status == 200
    candidates = answer["choices"][0]["otter"]["candidates"]
    for token, found in zip(answer["choices"][0]["otter"]["token_ids"], candidates, strict=True):
        assert token in [one["token_id"] for one in found] and len(found) <= 3
        assert all(one["text"] == f"w{one['token_id']}" for one in found if one["token_id"] > 2)
        assert found[0].keys() == {"token_id", "text", "logit", "reward", "score"}
    nested = server.call("/v1/completions", {**body, "prompt": [[20, 21]]})[1]
    assert nested["choices"] == answer["choices"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("tokens", [0, 3])
def test_rewards_of_the_prompt(server: Server, engine: Engine, path: str, tokens: int) -> None:
    prompt = Chat(tuple(CHAT)) if "chat" in path else "w20 w21"
    what = {"messages": CHAT} if "chat" in path else {"prompt": "w20 w21"}
    expected = generate(engine, Request(prompt, max_tokens=tokens, rewards_from=0))[0]
    assert expected.prompt_rewards is not None
    rewards = pytest.approx(expected.prompt_rewards.rewards, abs=1e-6)
    body = {**what, "max_tokens": tokens, "return_rewards": True}
    status, answer = server.call(path, body)
    assert status == 200 and answer["choices"][0]["otter"]["prompt_rewards"] == rewards
    assert answer["usage"]["completion_tokens"] == tokens
    *pieces, end = server.events(path, body)
    assert end == "[DONE]" and len(pieces) == max(tokens, 1)
    choices = [piece["choices"][0] for piece in pieces]
    assert choices[0]["otter"]["prompt_rewards"] == rewards
    assert choices[-1]["finish_reason"] == "length"
    assert sum(len(choice["otter"]["token_ids"]) for choice in choices) == tokens
    assert server.call(path, {**what, "max_tokens": 0})[0] == 400


def test_parts_of_a_message_are_one_text(server: Server) -> None:
    parts = [{"type": "text", "text": "w20 "}, {"type": "text", "text": "w21"}]
    messages = [
        {"role": "developer", "content": "w5"},
        {"role": "user", "content": parts, "name": "x"},
    ]
    whole = server.call("/v1/chat/completions", {"messages": CHAT, "max_tokens": 4})[1]
    found = server.call("/v1/chat/completions", {"messages": messages, "max_tokens": 4})[1]
    assert found["choices"] == whole["choices"]


def test_the_page_health_and_metrics(server: Server) -> None:
    status, content, headers = server.raw("/")
    assert status == 200 and b"/v1/completions" in content
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert server.call("/health") == (200, {"status": "ok", "queued": 0, "running": 0})
    before = server.idle().completed
    server.call("/v1/completions", {"prompt": "w3", "max_tokens": 2})
    text = server.raw("/metrics")[1].decode()
    assert f'otter_requests_total{{outcome="completed"}} {before + 1}\n' in text
    assert "# TYPE otter_request_seconds histogram" in text
    assert 'otter_request_seconds_bucket{le="+Inf"}' in text
    assert "# TYPE otter_running gauge" in text
    again = server.raw("/metrics")[1].decode()
    assert again == text
    model = server.call("/v1/models")[1]["data"][0]
    assert model["otter"]["signals"] == [{"name": "reward", "kind": "value", "bounds": [-1, 1]}]
    assert model["otter"]["chat"] is True
