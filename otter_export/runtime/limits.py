"""What a scheduler accepts, and how much of it at a time."""

from __future__ import annotations

import dataclasses

from otter_export.errors import RequestError
from otter_export.manifest import EngineManifest


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
            least = 0 if field.name == "max_queue" else 1
            if value is None and "None" in str(field.type):
                continue
            if type(value) is not int or value < least:
                raise RequestError(
                    f"{field.name} must be an integer of at least {least}, got {value!r}"
                )

    def slots(self, manifest: EngineManifest) -> int:
        """Most cache slots in use at a time: what the caches can cost in memory, in tokens."""
        most = self.max_batch_size * manifest.max_sequence_length
        return most if self.cache_tokens is None else min(most, self.cache_tokens)
