"""`generate` and `stream`: text from prompts, in one call."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator, Sequence

from otter_export.arguments import integer
from otter_export.errors import OtterError, RequestError
from otter_export.manifest import EngineManifest
from otter_export.quoting import quoted
from otter_export.runtime.chat import Chat
from otter_export.runtime.drafts import NONE
from otter_export.runtime.engine import Engine
from otter_export.runtime.methods.args_greedy import ArgsGreedy
from otter_export.runtime.methods.base import DecodingMethod
from otter_export.runtime.penalties import Penalties
from otter_export.runtime.request import Request, Result, TokenEvent, stop_words
from otter_export.runtime.scheduler import Event, Limits, Scheduler

#: Requests decoded at a time unless told otherwise; more wait for a place.
BATCH_SIZE = 32


def generate(
    engine: Engine,
    prompts: str | Chat | Request | Sequence[str | Chat | Request],
    method: DecodingMethod | None = None,
    *,
    max_tokens: int = 64,
    stop: str | Sequence[str] | None = (),
    seed: int | None = None,
    penalties: Penalties | None = None,
    batch_size: int = BATCH_SIZE,
    drafts: str = NONE,
    on_event: Callable[[TokenEvent], None] | None = None,
) -> list[Result]:
    """Continue prompts with reward-guided decoding, all in one batch.

    >>> from otter_export import ArgsGreedy, generate, load_engine
    >>> engine = load_engine("smollm2-engine")                                  # doctest: +SKIP
    >>> result = generate(engine, "The film was", ArgsGreedy(weight=4.0))[0]    # doctest: +SKIP
    >>> print(result.text, result.rewards)                                      # doctest: +SKIP

    Args:
        engine: From `load_engine`.
        prompts: One prompt or several. Texts and chats take the arguments below; a `Request`
            brings its own.
        method: How tokens are chosen; None is ``ArgsGreedy()``.
        max_tokens: Most tokens to generate for each prompt.
        stop: Texts that end the generation; special tokens count, though they are not shown.
        seed: Of each prompt's own random generator; None draws one.
        penalties: Penalties and bans of each prompt; None is none.
        batch_size: Most prompts that are decoded at a time.
        drafts: See `Request`: it changes the time, never a token.
        on_event: Called with each token as it comes.

    Returns:
        One result per prompt, in their order.

    Raises:
        RequestError: A prompt or an option is not valid; nothing was generated.
        EngineError: The engine has no such signal, or fails.
    """
    if on_event is not None and not callable(on_event):
        raise RequestError(f"on_event must be a function or None, got {quoted(on_event)}")
    requests = _requests(prompts, method, max_tokens, stop, seed, penalties, drafts)
    results: dict[int, Result] = {}
    for item in stream(engine, requests, batch_size=batch_size):
        if isinstance(item, Result):
            results[item.request] = item
        elif on_event is not None:
            on_event(item)
    return [results[index] for index in range(len(requests))]


def stream(
    engine: Engine,
    requests: str | Chat | Request | Sequence[str | Chat | Request],
    method: DecodingMethod | None = None,
    *,
    max_tokens: int = 64,
    stop: str | Sequence[str] | None = (),
    seed: int | None = None,
    penalties: Penalties | None = None,
    batch_size: int = BATCH_SIZE,
    drafts: str = NONE,
) -> Iterator[TokenEvent | Result]:
    """Continue prompts, yielding each token as it comes.

    Closing the iterator ends the generation. The arguments are checked at once, not when the first
    token is asked for.

    Args:
        engine: From `load_engine`.
        requests: What to continue: as the ``prompts`` of `generate`.
        method: As `generate`, for texts; the next three too.
        max_tokens: Most tokens to generate for each prompt.
        stop: Texts that end the generation.
        seed: Of each prompt's own random generator.
        penalties: Penalties and bans of each prompt; None is none.
        batch_size: Most prompts that are decoded at a time.
        drafts: See `Request`.

    Returns:
        An iterator of `TokenEvent`; a request's last one is followed by its `Result`.

    Raises:
        RequestError, EngineError: As `generate`.
    """
    size = integer("batch_size", batch_size, least=1)
    if not isinstance(getattr(engine, "manifest", None), EngineManifest):
        raise RequestError(f"engine must be one that load_engine returned, got {quoted(engine)}")
    requests = _requests(requests, method, max_tokens, stop, seed, penalties, drafts)
    scheduler = Scheduler(engine, Limits(max_batch_size=size, max_queue=None))
    events: collections.deque[Event] = collections.deque()
    for index, request in enumerate(requests):
        try:
            scheduler.submit(request, on_event=events.append)
        except RequestError as error:
            where = f"prompt {index + 1} of {len(requests)}: " if len(requests) > 1 else ""
            raise RequestError(f"{where}{error}") from None

    def items() -> Iterator[TokenEvent | Result]:
        work = True
        while work:
            work = scheduler.step()
            while events:
                event = events.popleft()
                if isinstance(event, OtterError):
                    raise event
                yield event

    return items()


def _requests(
    prompts: str | Chat | Request | Sequence[str | Chat | Request],
    method: DecodingMethod | None,
    max_tokens: int,
    stop: str | Sequence[str] | None,
    seed: int | None,
    penalties: Penalties | None,
    drafts: str,
) -> list[Request]:
    if isinstance(prompts, str | Chat | Request):
        prompts = [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes | bytearray | memoryview):
        raise RequestError(f"prompts must be texts or requests, got {quoted(prompts)}")
    # The options are checked for their own sake, also where every prompt brings its own.
    chosen = ArgsGreedy() if method is None else method
    penalties = penalties or Penalties()
    options = Request("", chosen, max_tokens, stop_words(stop), seed, penalties, drafts)
    return [
        prompt if isinstance(prompt, Request) else dataclasses.replace(options, prompt=prompt)
        for prompt in prompts
    ]
