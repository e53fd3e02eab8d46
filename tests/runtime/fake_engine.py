"""An engine without a model (L4): its answers are hashes of exactly what each token can see.

A row of the cache is a digest of the token, its position and the set of rows that it saw when it
was computed, as a key/value row of a real decoder is. Logits and rewards are drawn from it.
So one wrong mask, position, cache slot or commit anywhere in the past changes everything after it,
while the order of rows does not matter, as in attention.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from otter_export.errors import EngineError
from otter_export.manifest import EngineManifest
from otter_export.runtime.engine import BoolArray, Cache, IntArray, Step
from otter_export.runtime.step_check import check_commit, check_forward
from otter_export.signals import Signal, kind_of

EOS = 0
REWARD = Signal("reward")


class ByteTokenizer:
    """Token i is byte i, but for the ids given as special, which have no text."""

    def __init__(self, special: Sequence[int] = (EOS,)) -> None:
        self.special = frozenset(special)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return list(text.encode())

    @property
    def special_ids(self) -> frozenset[int]:
        return self.special

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Special token i is ``<i>`` where special tokens are wanted."""
        texts = [
            (b"" if skip_special_tokens else f"<{i}>".encode())
            if i in self.special
            else bytes([i % 256])
            for i in ids
        ]
        return b"".join(texts).decode(errors="replace")


def make_manifest(
    vocab_size: int = 256,
    signals: tuple[Signal, ...] = (REWARD,),
    max_sequence_length: int = 128,
    eos_token_ids: tuple[int, ...] = (EOS,),
    bos_token_id: int | None = None,
) -> EngineManifest:
    return EngineManifest(
        target="fake",
        precision="fp32",
        execution_provider="cpu",
        cache_form="digests",
        model_file="none",
        base={"vocab_size": vocab_size},
        channel={},
        signals=signals,
        max_sequence_length=max_sequence_length,
        bos_token_id=bos_token_id,
        eos_token_ids=eos_token_ids,
        inputs=(),
        outputs=(),
        files=(),
    )


class FakeCache:
    def __init__(self, rows: list[list[bytes]]) -> None:
        self.rows = rows
        self.version = 0

    @property
    def lengths(self) -> IntArray:
        return np.array([len(r) for r in self.rows], np.int64)


@dataclasses.dataclass(frozen=True)
class FakeRows:
    cache: FakeCache
    version: int
    digests: list[list[bytes]]


class FakeEngine:
    """See the module's docstring; counts what it is asked to do.

    Args:
        manifest: Sizes and signals.
        spread: Standard deviation of the logits; a large one makes the model peaked.
        script: Token ids that are, by position of the token fed, far more likely than all others.
    """

    def __init__(
        self,
        manifest: EngineManifest | None = None,
        spread: float = 2.0,
        script: dict[int, int] | None = None,
        tokenizer: ByteTokenizer | None = None,
    ) -> None:
        self.manifest = make_manifest() if manifest is None else manifest
        self.tokenizer = ByteTokenizer() if tokenizer is None else tokenizer
        self.spread = spread
        self.script = script or {}
        self.calls: list[tuple[int, int]] = []
        self.even_steps = True
        self.chains_alike = True

    def token_ids(self, signal: Signal) -> np.ndarray | None:
        """Every third token, where a signal drafts a part of them."""
        if signal.draft_vocab is None:
            return None
        return np.arange(signal.draft_vocab, dtype=np.int32) * 3

    def new_cache(self, batch_size: int) -> FakeCache:
        return FakeCache([[] for _ in range(batch_size)])

    def append(self, cache: FakeCache, sources: Sequence[tuple[Cache, int]]) -> None:
        assert all(source is not cache for source, _ in sources)
        cache.rows += [list(source.rows[b]) for source, b in sources]
        cache.version += 1

    def select(self, cache: FakeCache, indices: Sequence[int]) -> None:
        assert len(set(indices)) == len(indices)
        cache.rows = [cache.rows[b] for b in indices]
        cache.version += 1

    def truncate(self, cache: FakeCache, lengths: Sequence[int]) -> None:
        assert all(n <= len(rows) for n, rows in zip(lengths, cache.rows, strict=True))
        cache.rows = [rows[:n] for n, rows in zip(lengths, cache.rows, strict=True)]
        cache.version += 1

    def forward(
        self,
        cache: FakeCache,
        input_ids: IntArray,
        position_ids: IntArray,
        tree: BoolArray,
        logits_to_keep: int,
    ) -> Step:
        check_forward(self.manifest, cache.lengths, input_ids, position_ids, tree, logits_to_keep)
        batch, width = input_ids.shape
        self.calls.append((batch, width))
        digests = [
            self._digests(cache.rows[b], input_ids[b], position_ids[b], tree[b])
            for b in range(batch)
        ]
        kept = [row[width - logits_to_keep :] for row in digests]
        logits = np.array([[self._logits(d) for d in row] for row in kept], np.float32)
        if self.script:
            for b, r in np.ndindex(logits.shape[:2]):
                position = int(position_ids[b, width - logits_to_keep + r])
                if position in self.script:
                    logits[b, r, self.script[position]] += 100.0
        signals = {s.name: self._signal(s, kept) for s in self.manifest.signals}
        return Step(logits, signals, FakeRows(cache, cache.version, digests))

    def commit(self, cache: FakeCache, step: Step, rows: Sequence[Sequence[int]]) -> None:
        new: FakeRows = step.rows
        if new.cache is not cache or new.version != cache.version:
            raise EngineError("a step can be committed once, to the cache that it was run on")
        check_commit(self.manifest, cache.lengths, len(new.digests[0]), rows)
        for b, kept in enumerate(rows):
            cache.rows[b] += [new.digests[b][i] for i in kept]
        cache.version += 1

    def _digests(
        self, prefix: list[bytes], tokens: IntArray, positions: IntArray, tree: BoolArray
    ) -> list[bytes]:
        """Digests of new rows; a row must come after those that it sees."""
        new: list[bytes] = []
        for i, (token, position) in enumerate(zip(tokens, positions, strict=True)):
            seen = [new[j] for j in np.flatnonzero(tree[i]) if j != i]
            text = b"".join(sorted([*prefix, *seen])) + f"{token},{position}".encode()
            new.append(hashlib.blake2b(text, digest_size=8).digest())
        return new

    def _draw(self, digest: bytes, purpose: str) -> np.random.Generator:
        seed = hashlib.blake2b(digest + purpose.encode(), digest_size=8).digest()
        return np.random.default_rng(int.from_bytes(seed, "little"))

    def _logits(self, digest: bytes) -> np.ndarray:
        return self._draw(digest, "logits").standard_normal(self.manifest.vocab_size) * self.spread

    def _signal(self, signal: Signal, kept: list[list[bytes]]) -> np.ndarray:
        shape = kind_of(signal).output_dims(signal, self.manifest.vocab_size)
        low, high = signal.bounds or (-3.0, 3.0)
        values = [[self._draw(d, signal.name).uniform(low, high, shape) for d in r] for r in kept]
        return np.array(values, np.float32)
