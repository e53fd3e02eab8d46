"""Sends the responses of requests, on a thread of its own.

A response is a message to the server and back, about 0.2 ms. Sent by the scheduler's thread it
would delay the next step of everybody; here it overlaps with the engine's work.
"""

from __future__ import annotations

import dataclasses
import math
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from otter_export.errors import OtterError
from otter_export.runtime.request import PromptRewards, Result, TokenEvent
from otter_export.runtime.scheduler import Event, RequestHandle
from otter_export.serving.tensors import output

Outputs = dict[str, npt.NDArray[Any]]


class Channel(Protocol):
    """The way back to one client."""

    def send(self, outputs: Outputs, *, final: bool) -> None:
        """Send a response; ``final`` ends the request."""
        ...

    def fail(self, error: OtterError) -> None:
        """End the request with an error."""
        ...

    def is_cancelled(self) -> bool:
        """Whether the client is gone, as far as the server knows."""
        ...


@dataclasses.dataclass(eq=False)
class Reply:
    """What one client hears.

    Args:
        channel: The way back.
        stream: Whether every token is a response, or all of them together.
        max_candidates: Most candidates per token to return; 0 returns none.

    Attributes:
        handle: The scheduler's, once it took the request.
    """

    channel: Channel
    stream: bool
    max_candidates: int
    handle: RequestHandle | None = None
    _events: list[TokenEvent] = dataclasses.field(default_factory=list, init=False)

    def send(self, event: Event) -> None:
        """Send what an event means for the client.

        A stream gets a response per token, the last of which is final; others get one at the end,
        and a stream of no tokens too.
        """
        if isinstance(event, TokenEvent):
            if self.stream:
                outputs = token_outputs(event, self.max_candidates)
                self.channel.send(outputs, final=event.finish_reason is not None)
            elif self.max_candidates:
                self._events.append(event)
        elif isinstance(event, Result):
            if not self.stream or not event.token_ids:
                outputs = result_outputs(event, self._events, self.max_candidates)
                self.channel.send(outputs, final=True)
        else:
            self.channel.fail(event)


class Responder:
    """Takes events from the scheduler's thread and sends them, in order.

    Args:
        on_failure: Called with a request whose response could not be sent, and why; raises nothing.
    """

    def __init__(self, on_failure: Callable[[Reply, BaseException], None]) -> None:
        self._on_failure = on_failure
        self._queue: queue.SimpleQueue[tuple[Reply, Event] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="responder", daemon=True)
        self._thread.start()

    def put(self, reply: Reply, event: Event) -> None:
        """Take an event; returns at once."""
        self._queue.put((reply, event))

    def close(self) -> None:
        """Send everything that is left, then stop."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            reply, event = item
            try:
                reply.send(event)
            # Whatever the server raises for one request must not end the others'; without this
            # thread they would wait for ever.
            except BaseException as error:
                self._on_failure(reply, error)


def token_outputs(event: TokenEvent, max_candidates: int) -> Outputs:
    """One response of a stream.

    Args:
        event: The token.
        max_candidates: Most candidates to return; 0 returns none.
    """
    reason = event.finish_reason or ""
    outputs = _outputs(event.text, [event.token_id], _present([event.reward]), reason)
    outputs |= _signals({name: (value,) for name, value in event.signals.items()})
    outputs |= _prompt(event.prompt_rewards)
    return outputs | (_candidates([event], max_candidates) if max_candidates else {})


def result_outputs(result: Result, events: Sequence[TokenEvent], max_candidates: int) -> Outputs:
    """The one response of a request that does not stream.

    Args:
        result: The result.
        events: Its tokens, if candidates are wanted.
        max_candidates: Most candidates per token to return; 0 returns none.
    """
    outputs = _outputs(
        result.text, list(result.token_ids), list(result.rewards), result.finish_reason
    )
    outputs |= _signals(result.signals) | _prompt(result.prompt_rewards)
    return outputs | (_candidates(events, max_candidates) if max_candidates else {})


def _outputs(text: str, tokens: list[int], rewards: list[object], reason: str) -> Outputs:
    return {
        "text_output": output("text_output", [text]),
        "token_id": output("token_id", list(tokens)),
        "reward": output("reward", list(rewards)),
        "finish_reason": output("finish_reason", [reason]),
    }


def _signals(values: Mapping[str, Sequence[float]]) -> Outputs:
    """Values of several signals, by name for each token; of one `reward` says all."""
    if len(values) < 2:
        return {}
    by_token = zip(*values.values(), strict=True)
    return {
        "signal_names": output("signal_names", list(values)),
        "signal_values": output("signal_values", [value for token in by_token for value in token]),
    }


def _prompt(found: PromptRewards | None) -> Outputs:
    """Rewards of the prompt's tokens; ``signal_names`` says of which signals where several are."""
    if found is None:
        return {}
    outputs = {"prompt_reward": output("prompt_reward", _numbers(found.rewards))}
    if len(found.signals) < 2:
        return outputs
    by_token = zip(*found.signals.values(), strict=True)
    values = _numbers([value for token in by_token for value in token])
    return outputs | {
        "signal_names": output("signal_names", list(found.signals)),
        "prompt_signal_values": output("prompt_signal_values", values),
    }


def _numbers(values: Sequence[float | None]) -> list[object]:
    """A tensor has no None."""
    return [math.nan if value is None else value for value in values]


def _present(rewards: list[float | None]) -> list[object]:
    """None at all where the engine has no signal that scores tokens."""
    return [reward for reward in rewards if reward is not None]


def _candidates(events: Sequence[TokenEvent], most: int) -> Outputs:
    """Candidates of all tokens one after the other; ``candidate_counts`` says where each begins."""
    kept = [event.candidates[:most] for event in events]
    flat = [candidate for candidates in kept for candidate in candidates]
    return {
        "candidate_counts": output("candidate_counts", [len(c) for c in kept]),
        "candidate_ids": output("candidate_ids", [c.token_id for c in flat]),
        "candidate_logits": output("candidate_logits", [c.logit for c in flat]),
        "candidate_rewards": output("candidate_rewards", _present([c.reward for c in flat])),
        "candidate_scores": output("candidate_scores", [c.score for c in flat]),
    }
