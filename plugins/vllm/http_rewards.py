"""Rewards over HTTP: an ASGI middleware for vLLM's OpenAI-compatible server.

    vllm serve CKPT --middleware otter_export.plugins.vllm.http_rewards.RewardsMiddleware

A request whose ``vllm_xargs`` have ``otter_rewards`` gets ``choices[].otter.rewards``, one a token,
in each chunk of a stream too; with ``otter_prompt_rewards`` also those of its prompt. Inside, they
travel among the logprobs (`otter_export.plugins.vllm.rewards`): the middleware asks for these and
takes the rewards out again. ``/v1/models`` names the signals, ``/metrics`` has what came back.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from prometheus_client import REGISTRY, Counter, Summary

from otter_export.config import OtterConfig
from otter_export.plugins.vllm.checkpoint_config import checkpoint_directory
from otter_export.plugins.vllm.guidance import PREFIX
from otter_export.signals import kind_of

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

COMPLETIONS, CHAT, MODELS = "/v1/completions", "/v1/chat/completions", "/v1/models"
REWARDS, PROMPT_REWARDS = f"{PREFIX}rewards", f"{PREFIX}prompt_rewards"
#: Of a request's body; vLLM itself has no limit.
_LARGEST_BODY = 64 << 20
_KEY = "otter"


class RewardsMiddleware:
    """See the module's docstring.

    Args:
        app: vLLM's application.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._requests = _metric(Counter, f"{PREFIX}requests", "Requests by guidance", ["guided"])
        self._rewards = _metric(Summary, f"{PREFIX}reward", "Rewards of generated tokens", [])

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        path, method = scope.get("path"), scope.get("method")
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif path == MODELS and method == "GET":
            names = _signals(scope)
            answer = _Answer(send, lambda data: _with_signals(data, names))
            await self._app(scope, receive, answer.send)
        elif path in (COMPLETIONS, CHAT) and method == "POST":
            await self._complete(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _complete(self, scope: Any, receive: Receive, send: Send) -> None:
        body = await _body(receive)
        if body is None:
            await _refuse(send)
            return
        try:
            data = json.loads(body)
            arguments = data.get("vllm_xargs") or {}
            wants = {name: bool(arguments.get(name)) for name in (REWARDS, PROMPT_REWARDS)}
        except (ValueError, AttributeError, RecursionError):
            wants = {}  # vLLM says what is wrong with it
        if wants:
            guides = bool(arguments.get(f"{PREFIX}weight") or arguments.get(f"{PREFIX}weights"))
            self._requests.labels(str(guides).lower()).inc()
        is_chat = scope["path"] == CHAT
        try:
            shown = _ask(data, is_chat, wants[PROMPT_REWARDS]) if any(wants.values()) else None
        except TypeError:
            wants = {}
        if not any(wants.values()):
            await self._app(scope, _again(body, receive), send)
            return
        vocab_size = scope["app"].state.vllm_config.model_config.get_vocab_size()

        def change(answer: Any) -> None:
            _take(answer, vocab_size, is_chat, shown)
            for choice in answer.get("choices") or ():
                for reward in choice.get(_KEY, {}).get("rewards") or ():
                    if reward is not None:
                        self._rewards.observe(reward)

        body = json.dumps(data).encode()
        headers = _with_length(scope["headers"], body)
        answer = _Answer(send, change)
        await self._app({**scope, "headers": headers}, _again(body, receive), answer.send)


class _Answer:
    """Changes the JSON of an answer, or of each event of a stream.

    Args:
        send: Where it goes.
        change: Changes a JSON object in place.
    """

    def __init__(self, send: Send, change: Callable[[Any], None]) -> None:
        self._send, self._change = send, change
        self._start: Message = {}
        self._waiting = b""
        self._streams = self._passes = False

    async def send(self, message: Message) -> None:
        """Take one message of the application."""
        if message["type"] == "http.response.start":
            kind = dict(message.get("headers", ())).get(b"content-type", b"")
            self._streams = kind.startswith(b"text/event-stream")
            is_json = kind.startswith(b"application/json")
            self._passes = message["status"] != 200 or not (self._streams or is_json)
            self._start = message
            if self._passes or self._streams:
                await self._send(message)
            return
        if message["type"] != "http.response.body" or self._passes:
            await self._send(message)
            return
        self._waiting += message.get("body", b"")
        more = message.get("more_body", False)
        if self._streams:
            events, end, rest = self._waiting.rpartition(b"\n\n")
            self._waiting = rest if more else b""
            body = self._events(events + end) + (b"" if more else rest)
            if body or not more:
                await self._send({**message, "body": body, "more_body": more})
        elif not more:
            body = self._changed(self._waiting)
            headers = _with_length(self._start["headers"], body)
            await self._send({**self._start, "headers": headers})
            await self._send({**message, "body": body})

    def _events(self, text: bytes) -> bytes:
        """Server-sent events, each changed."""
        start = b"data: "
        return b"\n".join(
            start + self._changed(line[len(start) :]) if line.startswith(start + b"{") else line
            for line in text.split(b"\n")
        )

    def _changed(self, text: bytes) -> bytes:
        data = json.loads(text)
        self._change(data)
        return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()


def _ask(data: dict[str, Any], is_chat: bool, with_prompt: bool) -> int | None:
    """Ask for logprobs with rewards among them; how many the client wanted itself, or None.

    The likeliest tokens of a chat are cut off behind as many as were asked for, with the token
    itself and its reward among them; those of a completion are not.

    Raises:
        TypeError: A number is none; vLLM will say so.
    """
    shown: int | None = data.get("logprobs")
    if is_chat:
        shown = (data.get("top_logprobs") or 0) if shown else None
        data.update(logprobs=True, top_logprobs=(shown or 0) + 2)
    else:
        data["logprobs"] = (shown or 0) + 1
    data["return_tokens_as_token_ids"] = True
    arguments = dict(data["vllm_xargs"])
    if arguments.pop(PROMPT_REWARDS, None):
        arguments.setdefault(REWARDS, 1)
    data["vllm_xargs"] = arguments
    if with_prompt:
        data["prompt_logprobs"] = (data.get("prompt_logprobs") or 0) + 1
    return shown


def _take(answer: dict[str, Any], vocab_size: int, is_chat: bool, shown: int | None) -> None:
    """Move the rewards of every choice to a field of their own."""
    name = f"token_id:{vocab_size}"
    for choice in answer.get("choices") or ():
        logprobs = choice.get("logprobs")
        if logprobs is None:
            continue
        if is_chat:
            rewards = [_chat_reward(item, name, shown) for item in logprobs.get("content") or ()]
        else:
            rewards = [top.pop(name, None) for top in logprobs["top_logprobs"] if top is not None]
        choice[_KEY] = {"rewards": rewards}
        if shown is None:
            choice["logprobs"] = None
    for holder in (answer, *(answer.get("choices") or ())):
        prompt = holder.get("prompt_logprobs")
        if prompt:
            entries = [one.pop(str(vocab_size), None) if one else None for one in prompt]
            target = (answer.get("choices") or [answer])[0] if holder is answer else holder
            found = [entry and entry["logprob"] for entry in entries]
            target.setdefault(_KEY, {})["prompt_rewards"] = found


def _chat_reward(item: dict[str, Any], name: str, shown: int | None) -> float | None:
    others = [one for one in item["top_logprobs"] if one["token"] != name]
    found = [one["logprob"] for one in item["top_logprobs"] if one["token"] == name]
    item["top_logprobs"] = others[: shown or 0]
    return found[0] if found else None


def _signals(scope: Any) -> list[dict[str, Any]]:
    """The signals of the server's model that are rewards."""
    model = scope["app"].state.vllm_config.model_config
    signals = OtterConfig.load(checkpoint_directory(model)).signals
    return [
        {"name": s.name, "kind": s.kind, "bounds": s.bounds} for s in signals if kind_of(s).scores
    ]


def _with_signals(data: dict[str, Any], signals: list[dict[str, Any]]) -> None:
    for model in data.get("data") or ():
        model[_KEY] = {"signals": signals}


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None if it is too large."""
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            break
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > _LARGEST_BODY:
            return None
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, then whatever else comes: that the client went away."""
    waiting = [body]

    async def read() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return read


async def _refuse(send: Send) -> None:
    text = f"the body has more than {_LARGEST_BODY} bytes"
    body = json.dumps({"error": {"message": text, "type": "BadRequestError", "code": 413}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 413, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _with_length(headers: Any, body: bytes) -> list[tuple[bytes, bytes]]:
    others = [(name, value) for name, value in headers if name.lower() != b"content-length"]
    return [*others, (b"content-length", str(len(body)).encode())]


def _metric(kind: Any, name: str, text: str, labels: list[str]) -> Any:
    """A metric of this process; vLLM may build its application more than once."""
    found = getattr(REGISTRY, "_names_to_collectors", {}).get(name)
    return found or kind(name, text, labels)
