"""Limits of what a scheduler accepts, and how much of it at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from otter_export.arguments import integer, keep
from otter_export.errors import RequestError
from otter_export.manifest import EngineManifest
from otter_export.runtime.scheduler.sequence import Sequence


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of a `Scheduler`; None is no limit.

    Args:
        max_batch_size: Most requests that have a place in the caches, prefilling or decoding.
        max_queue: Most requests that wait for a place; one more is refused with `QueueFullError`.
        max_tokens: Most tokens that a request may ask for.
        max_candidates: Most candidates per token that a guided request may ask for.
        prefill_tokens: Most prompt tokens of one forward pass, padding included. There is at most
            one such pass between two decoding steps, so this bounds how long a prompt stalls the
            others.
        cache_tokens: Slots of the caches, all requests together. A request counts with the prompt
            and the tokens that it may generate; since all sequences of a batch have equally many
            slots, a batch counts as its size times its longest request.

    Raises:
        RequestError: A limit is out of range.
    """

    max_batch_size: int = 32
    max_queue: int | None = 1024
    max_tokens: int | None = None
    max_candidates: int | None = None
    prefill_tokens: int = 256
    cache_tokens: int | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None and field.name not in ("max_batch_size", "prefill_tokens"):
                continue
            least = 0 if field.name == "max_queue" else 1
            keep(self, **{field.name: integer(field.name, value, least=least)})

    def within(self, manifest: EngineManifest) -> Limits:
        """These limits, or the engine's own where those are tighter.

        An engine that was built for fixed sizes names them: `StepLimits`, whose ``max_step`` bounds
        the tokens of any forward pass.
        """
        built = manifest.built_for.limits
        sizes = {
            "max_batch_size": built.max_batch_size,
            "max_candidates": built.max_candidates,
            "prefill_tokens": built.max_step,
        }
        tighter = {}
        for name, size in sizes.items():
            own = getattr(self, name)
            if size is not None and (own is None or size < own):
                tighter[name] = size
        return dataclasses.replace(self, **tighter)

    def check(self, sequence: Sequence) -> None:
        """Raise `RequestError` if a request asks for more than it may ever get."""
        request = sequence.request
        _at_most("max_tokens", request.max_tokens, self.max_tokens)
        if request.method.needs_rewards:
            _at_most("top_k", request.method.candidate_count or 0, self.max_candidates)
        _at_most("prompt and max_tokens together", sequence.max_length, self.cache_tokens)

    def admits(self, lengths: Collection[int]) -> bool:
        """Whether requests of these lengths, prompt and generated, have room together."""
        if len(lengths) > self.max_batch_size:
            return False
        return self.cache_tokens is None or len(lengths) * max(lengths) <= self.cache_tokens


def _at_most(what: str, value: int, limit: int | None) -> None:
    if limit is not None and value > limit:
        raise RequestError(f"{what} may be at most {limit} here, got {value}")
