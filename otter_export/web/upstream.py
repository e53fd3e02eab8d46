"""A scheduler whose work tritonserver does: calls become its requests, its answers our events.

So `otter-export serve --triton` speaks OpenAI's language before a model that Triton serves, chats
and rewards included. A thread waits for each answer; tritonserver ends a request whose connection
is closed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import http.client
import json
import math
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from otter_export.errors import (
    CancelledError,
    DeadlineError,
    EngineError,
    OtterError,
    QueueFullError,
    RequestError,
)
from otter_export.manifest import EngineManifest
from otter_export.runtime.drafts import NONE
from otter_export.runtime.engine import Tokenizer
from otter_export.runtime.penalties import Penalties
from otter_export.runtime.prompt_ids import prompt_ids
from otter_export.runtime.request import Candidate, PromptRewards, Request, Result, TokenEvent
from otter_export.runtime.scheduler import OnEvent, Stats
from otter_export.runtime.tokenizer import JsonTokenizer
from otter_export.serving.parsing import METHOD_OPTIONS
from otter_export.tokenizer_file import FILE_NAME as TOKENIZER_FILE

#: For an answer's next token.
_SILENCE_SECONDS = 300.0
#: How errors of the model say that their time was over (`RequestHandle.overdue`), and that too many
#: wait (`RequestQueue.check_open`): releases of tritonserver differ in the status that they give.
_OVER, _FULL = "seconds were over", "requests wait already"
_COLUMNS = ("candidate_ids", "candidate_logits", "candidate_rewards", "candidate_scores")


class Front(Protocol):
    """The part of an engine that a server before Triton needs."""

    @property
    def manifest(self) -> EngineManifest:
        """The content of its ``engine.json``."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its directory."""
        ...


class EngineFront:
    """That part, of a directory; the model itself is not loaded.

    Args:
        directory: The engine's.

    Raises:
        EngineError: It is not an engine, or has no tokenizer.
    """

    def __init__(self, directory: Path) -> None:
        self.manifest = EngineManifest.load(directory)
        self.tokenizer = JsonTokenizer(directory / TOKENIZER_FILE)


@dataclasses.dataclass(eq=False)
class UpstreamHandle:
    """One request that tritonserver has.

    Args:
        request: The request.
        prompt_ids: Its prompt.
        on_event: Hears of it.

    Attributes:
        cancelled: Whether it is to be ended.
        link: The connection, once there is one.
    """

    request: Request
    prompt_ids: tuple[int, ...]
    on_event: OnEvent
    cancelled: bool = False
    link: socket.socket | None = None


class Upstream:
    """Hands requests to tritonserver; used as a `Scheduler` is.

    Args:
        front: Of the engine that the model has.
        address: ``HOST:PORT`` of tritonserver's HTTP endpoint.
        model: Name of the model there.
        most: Most requests at a time.
    """

    def __init__(self, front: Front, address: str, model: str, most: int) -> None:
        self._front = front
        self._address = address
        self._path = f"/v2/models/{model}/generate_stream"
        self._most = most
        self._lock = threading.Lock()
        self._running: set[UpstreamHandle] = set()
        self._totals = dict.fromkeys(("submitted", "completed", "cancelled", "failed"), 0)
        self._tokens, self._rewards = 0, 0.0

    def start(self) -> None:
        """Nothing: each request has its own thread."""

    def close(self, *, drain: bool = True) -> None:
        """End what is left."""
        with self._lock:
            left = list(self._running)
        for handle in left:
            self.cancel(handle)

    @property
    def stats(self) -> Stats:
        """Counts of what passed here."""
        with self._lock:
            return Stats(
                running=len(self._running),
                tokens=self._tokens,
                reward_sum=self._rewards,
                **self._totals,
            )

    def submit(
        self,
        request: Request,
        *,
        on_event: OnEvent,
        deadline_seconds: float | None = None,
        request_id: str | None = None,
    ) -> UpstreamHandle:
        """Accept a request; see `Scheduler.submit`."""
        generated = int(request.max_tokens > 0)
        ids = prompt_ids(request.prompt, self._front, generated=generated)  # type: ignore[arg-type]
        handle = UpstreamHandle(request, tuple(ids), on_event)
        with self._lock:
            if len(self._running) >= self._most:
                raise QueueFullError(f"{self._most} requests are in work already; try again later")
            self._running.add(handle)
            self._totals["submitted"] += 1
        fields = triton_fields(request, ids, deadline_seconds)
        work = threading.Thread(target=self._work, args=(handle, fields), daemon=True)
        work.start()
        return handle

    def cancel(self, handle: UpstreamHandle) -> None:
        """End a request; one that has ended is left alone."""
        handle.cancelled = True
        link = handle.link
        if link is not None:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)

    def _work(self, handle: UpstreamHandle, fields: dict[str, Any]) -> None:
        try:
            outcome: Result | OtterError = self._answer(handle, fields)
        except OtterError as error:
            outcome = error
        # What tritonserver sends is not ours to trust; nobody may wait for ever.
        except Exception as error:
            outcome = EngineError(f"tritonserver's answer cannot be read: {error}")
        if handle.cancelled and not isinstance(outcome, Result):
            outcome = CancelledError("the request was cancelled")
        ended = "completed" if isinstance(outcome, Result) else "failed"
        ended = "cancelled" if isinstance(outcome, CancelledError) else ended
        with self._lock:
            self._running.discard(handle)
            self._totals[ended] += 1
        # Its loop may be closed.
        with contextlib.suppress(RuntimeError):
            handle.on_event(outcome)

    def _answer(self, handle: UpstreamHandle, fields: dict[str, Any]) -> Result:
        started = time.perf_counter()
        events: list[TokenEvent] = []
        last: dict[str, Any] = {}
        for last in self._responses(handle, fields):
            for event in _token_events(last, first=not events):
                events.append(event)
                with self._lock:
                    self._tokens += 1
                    self._rewards += event.reward or 0.0
                handle.on_event(event)
        if not last.get("finish_reason"):
            raise EngineError("tritonserver broke the answer off before its end")
        return Result(
            request=0,
            prompt=self._front.tokenizer.decode(handle.prompt_ids),
            prompt_ids=handle.prompt_ids,
            token_ids=tuple(event.token_id for event in events),
            text="".join(event.text for event in events),
            rewards=tuple(event.reward for event in events if event.reward is not None),
            finish_reason=str(last["finish_reason"]),
            forwards=0,
            seconds=time.perf_counter() - started,
            signals={n: tuple(e.signals[n] for e in events) for n in _names(events)},
            prompt_rewards=events[0].prompt_rewards if events else _prompt_rewards(last),
        )

    def _responses(self, handle: UpstreamHandle, fields: dict[str, Any]) -> Iterator[Any]:
        """The responses of tritonserver, as they come."""
        link = http.client.HTTPConnection(self._address, timeout=_SILENCE_SECONDS)
        try:
            link.connect()
            handle.link = link.sock
            if handle.cancelled:
                return
            headers = {"Content-Type": "application/json"}
            link.request("POST", self._path, json.dumps(fields), headers)
            reply = link.getresponse()
            for line in reply:
                if not line.strip():
                    continue
                response = json.loads(line.removeprefix(b"data:"))
                if "error" in response or reply.status != 200:
                    raise _error(str(response.get("error")), reply.status)
                yield response
        except (OSError, http.client.HTTPException) as error:
            what = str(error) or type(error).__name__
            raise EngineError(f"tritonserver at {self._address} does not answer: {what}") from None
        finally:
            link.close()


def triton_fields(
    request: Request, ids: list[int], deadline_seconds: float | None
) -> dict[str, Any]:
    """A request by the names of the model's inputs (docs/triton.md)."""
    method = request.method
    fields: dict[str, Any] = {
        "input_ids": ids,
        "stream": True,
        "return_candidates": True,
        "max_tokens": request.max_tokens,
        "method": method.name,
    }
    for name, own in METHOD_OPTIONS.items():
        value = getattr(method, own, None)
        if own in ("weights", "minimum"):
            value = [f"{signal}={number!r}" for signal, number in (value or {}).items()]
        if value is not None and value != []:
            fields[name] = value
    if "weights" in fields:
        fields.pop("reward_weight", None)
    plain = Penalties()
    for field in dataclasses.fields(plain):
        value = getattr(request.penalties, field.name)
        if value != getattr(plain, field.name):
            fields[field.name] = list(value) if isinstance(value, tuple) else value
    if request.stop:
        fields["stop_words"] = list(request.stop)
    if request.seed is not None:
        fields["seed"] = request.seed
    if request.drafts != NONE:
        fields["drafts"] = request.drafts
    if request.rewards_from is not None:
        fields["return_rewards"] = True
    if deadline_seconds is not None:
        fields["deadline_ms"] = max(1, math.ceil(1000 * deadline_seconds))
    return fields


def _token_events(response: dict[str, Any], first: bool) -> list[TokenEvent]:
    """The token of a response, if it has one."""
    tokens, rewards = _listed(response, "token_id"), _listed(response, "reward")
    if not tokens:
        return []
    ids, logits, scored, scores = (_listed(response, name) for name in _COLUMNS)
    scored = scored or [None] * len(ids)
    rows = zip(ids, logits, scored, scores, strict=True)
    names, values = _listed(response, "signal_names"), _listed(response, "signal_values")
    event = TokenEvent(
        request=0,
        token_id=tokens[0],
        text=response.get("text_output", ""),
        reward=rewards[0] if rewards else None,
        candidates=tuple(Candidate(*row) for row in rows),
        finish_reason=response.get("finish_reason") or None,
        signals=dict(zip(names, values, strict=False)),
        prompt_rewards=_prompt_rewards(response) if first else None,
    )
    return [event]


def _prompt_rewards(response: dict[str, Any]) -> PromptRewards | None:
    if "prompt_reward" not in response:
        return None
    rewards = _numbers(_listed(response, "prompt_reward"))
    names = _listed(response, "signal_names")
    values = _numbers(_listed(response, "prompt_signal_values"))
    signals = {name: values[i :: len(names)] for i, name in enumerate(names)}
    return PromptRewards(rewards, signals)


def _numbers(values: list[Any]) -> tuple[float | None, ...]:
    """A tensor has NaN where there is no number."""
    return tuple(v if isinstance(v, int | float) and math.isfinite(v) else None for v in values)


def _names(events: list[TokenEvent]) -> list[str]:
    return list(events[0].signals) if events else []


def _listed(response: dict[str, Any], name: str) -> list[Any]:
    """An output; tritonserver writes a list of one as its element, and leaves an empty one out."""
    value = response.get(name)
    return [] if value is None else value if isinstance(value, list) else [value]


def _error(message: str, status: int) -> OtterError:
    """An error of tritonserver's, of the kind that its words or HTTP's status tell."""
    if _OVER in message:
        return DeadlineError(message)
    if _FULL in message or status == 503:
        return QueueFullError(message)
    return (RequestError if status == 400 else EngineError)(message)
