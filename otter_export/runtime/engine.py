"""The `Engine` protocol: all that decoding needs to know of an engine, whatever runs it.

A step never changes the cache: `Engine.forward` returns the rows that it computed inside a `Step`,
and `Engine.commit` keeps those that the caller chose. So a tree of candidates, a rejected draft and
a chunk of prompt are one mechanism.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from otter_export.chat_template import ChatTemplate
from otter_export.manifest import EngineManifest
from otter_export.signals import Signal

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class Cache(Protocol):
    """The key/value rows of a batch of sequences."""

    @property
    def lengths(self) -> IntArray:
        """``[B]``: committed tokens of each sequence."""
        ...


@dataclasses.dataclass(frozen=True)
class Step:
    """What one forward pass gave.

    Args:
        logits: ``[B, R, V]`` float32, for the last R of the S fed tokens.
        signals: Name to ``[B, R, ...]`` float32; what follows is its kind's (`SignalKind`).
        rows: The new cache rows, in the backend's own form; for `Engine.commit` only.
    """

    logits: FloatArray
    signals: Mapping[str, FloatArray]
    rows: Any


class Tokenizer(Protocol):
    """Text to token ids and back."""

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens, which `decode` leaves out unless told otherwise."""
        ...

    @property
    def chat_template(self) -> ChatTemplate | None:
        """What makes a text of a chat; None: the model has none."""
        ...

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, with what the model's tokenizer puts around one (BOS) or without."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids, without special tokens or with them; incomplete UTF-8 is U+FFFD."""
        ...


class Engine(Protocol):
    """An engine that is loaded and ready."""

    @property
    def manifest(self) -> EngineManifest:
        """The content of its ``engine.json``."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of its directory; read when it is first asked for."""
        ...

    @property
    def even_steps(self) -> bool:
        """Whether a step that may have several tokens should have an even number of them.

        Else a token's numbers can depend on how many candidates others have (docs/batching.md).
        """
        ...

    @property
    def chains_alike(self) -> bool:
        """Whether a token that is fed behind others in one step gets the bits that it gets alone.

        So a draft can be kept as if it had been fed after its choice. For steps of up to eight
        tokens, of an even number where `even_steps` says so.
        """
        ...

    def token_ids(self, signal: Signal) -> npt.NDArray[np.int32] | None:
        """The tokens that a signal drafts, ``[V']`` ascending; None: all of them.

        Raises:
            EngineError, CheckpointError: They are missing or wrong.
        """
        ...

    def new_cache(self, batch_size: int) -> Cache:
        """An empty cache for ``batch_size`` sequences, 0 to join later.

        It grows as needed, up to the engine's limit.
        """
        ...

    def append(self, cache: Cache, sources: Sequence[tuple[Cache, int]]) -> None:
        """Copies of sequences join at the end of a cache, in this order.

        Args:
            cache: The cache that grows; the sequences in it are not moved.
            sources: ``(cache, index of the sequence in it)`` for each that joins. The sources stay
                as they are, and none of them is ``cache`` itself.

        Raises:
            EngineError: A cache is not of this engine, or an index is out of range.
        """
        ...

    def select(self, cache: Cache, indices: Sequence[int]) -> None:
        """Keep only these sequences of a cache, in this order; the others leave it.

        Only sequences whose place changes are copied, so the cheapest way to take one out is to
        name the last in its place. A step that was run before cannot be committed any more.

        Args:
            cache: The cache.
            indices: Which sequences, each at most once; may be empty.

        Raises:
            EngineError: The cache is not of this engine, or an index is out of range or repeated.
        """
        ...

    def truncate(self, cache: Cache, lengths: Sequence[int]) -> None:
        """Forget the last tokens of each sequence of a cache.

        A step that was run before cannot be committed any more.

        Args:
            cache: The cache.
            lengths: Tokens that each sequence keeps, at most those that it has.

        Raises:
            EngineError: The cache is not of this engine, or lengths are out of range.
        """
        ...

    def forward(
        self,
        cache: Cache,
        input_ids: IntArray,
        position_ids: IntArray,
        tree: BoolArray,
        logits_to_keep: int,
    ) -> Step:
        """Run the model on S new tokens per sequence.

        Every new token sees the whole committed prefix of its sequence, and of the new tokens those
        that ``tree`` allows.

        Args:
            cache: The committed prefixes; read, not changed.
            input_ids: ``[B, S]``; padding may be any valid token.
            position_ids: ``[B, S]``.
            tree: ``[B, S, S]``; ``tree[b, i, j]``: new token i sees new token j. A padding row may
                be all False.
            logits_to_keep: R, 1 to S: rows of logits and signals wanted, the last ones.

        Raises:
            EngineError: Shapes disagree, a token is out of range, or the sequence is too long.
        """
        ...

    def commit(self, cache: Cache, step: Step, rows: Sequence[Sequence[int]]) -> None:
        """Append rows of a step to the cache.

        Args:
            cache: The cache that the step was run on.
            step: The step.
            rows: For each sequence the indices below S to keep, in the order in which they follow
                the prefix; empty keeps none.
        """
        ...
