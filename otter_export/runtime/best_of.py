"""`best_of`: several continuations of one prompt, which is fed once, ranked by their rewards."""

from __future__ import annotations

import collections
import dataclasses
import operator
import secrets
import statistics
from collections.abc import Callable, Mapping

from otter_export.arguments import choice, integer
from otter_export.errors import RequestError
from otter_export.quoting import quoted
from otter_export.runtime.engine import Engine
from otter_export.runtime.prefill import prefill
from otter_export.runtime.request import Request, Result
from otter_export.runtime.scheduler.decode import Decoder
from otter_export.runtime.scheduler.sequence import Sequence

#: Continuations decoded at a time.
_AT_A_TIME = 32
#: What a continuation is worth, from the rewards of its tokens.
RANKS: Mapping[str, Callable[[tuple[float, ...]], float]] = {
    "last": operator.itemgetter(-1),
    "mean": statistics.fmean,
}


def best_of(engine: Engine, request: Request, count: int, *, rank: str = "last") -> list[Result]:
    """Continue one prompt several times, and rank what comes of it.

    The prompt is fed once, and its part of the cache copied. Continuation i is the one that
    `generate` makes of the same request with the seed ``request.seed + i``.

    >>> from otter_export import Plain, Request, best_of, load_engine
    >>> engine = load_engine("smollm2-engine")                                   # doctest: +SKIP
    >>> request = Request("The film was", Plain(temperature=1.0), seed=0)        # doctest: +SKIP
    >>> print(best_of(engine, request, 8)[0].text)                               # doctest: +SKIP

    Args:
        engine: From `load_engine`.
        request: What to continue. Its method samples, if there are several; its seed is that of
            the first, None draws one.
        count: How many continuations, at least 1.
        rank: ``last``: by the reward of the last token, which is that of the whole text where the
            signal is a ``value``; ``mean``: by the mean of all tokens' rewards.

    Returns:
        All of them, the best first; ``request`` of each is i.

    Raises:
        RequestError: An argument is not valid.
        EngineError: The engine has no signal that scores, or fails.
    """
    rank = choice("rank", rank, RANKS)
    if not isinstance(request, Request):
        raise RequestError(f"request must be a Request, got {quoted(request)}")
    request.check_generates("best_of")
    count = integer("count", count, least=1, most=1 << 16)
    if count > 1 and not request.method.samples:
        raise RequestError(
            f"method {request.method.name} draws nothing as it is, so that all {count} "
            "continuations would be alike; sample, such as with --method plain --temperature 1"
        )
    first = secrets.randbits(63) if request.seed is None else request.seed
    seeds = [(first + i) % (1 << 64) for i in range(count)]
    requests = [dataclasses.replace(request, seed=seed) for seed in seeds]
    sequences = [Sequence(number, each, engine) for number, each in enumerate(requests)]
    cache, step = prefill(engine, [sequences[0].prompt_ids])
    for sequence in sequences:
        sequence.start(cache, 0)
        sequence.propose(step, 0, row=0)
    _decode(engine, sequences)
    results = [sequence.result() for sequence in sequences]
    if not results[0].rewards:
        raise RequestError("the engine has no signal that scores tokens, to rank texts by")
    return sorted(results, key=lambda result: -RANKS[rank](result.rewards))


def _decode(engine: Engine, sequences: list[Sequence]) -> None:
    """Decode to the end, some at a time; the caches of those are copies of the prompt's."""
    decoder = Decoder(engine, separate=engine.manifest.execution_provider == "cpu")
    most = engine.manifest.built_for.limits.max_batch_size or _AT_A_TIME
    waiting = collections.deque(sequences)
    running: set[Sequence] = set()
    while waiting or running:
        room = min(most, _AT_A_TIME) - len(running)
        joining = [waiting.popleft() for _ in range(min(room, len(waiting)))]
        decoder.join(joining)
        decoder.step()
        running = {s for s in (*running, *joining) if s.finish_reason is None and s.error is None}
        for sequence in sequences:
            if sequence.error is not None:
                raise sequence.error
