"""Feeding prompts: short ones together, long ones in chunks, in turns."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Collection, Sequence

import numpy as np

from otter_export.errors import EngineError
from otter_export.runtime.engine import Cache, Engine, Step
from otter_export.runtime.sequence import SequenceState

#: Most tokens of one forward pass over prompts, padding included. Matrix products are as fast per
#: token at 256 as at any more, and the activations of one pass stay small.
CHUNK_TOKENS = 256
#: Prompts that share a pass differ by fewer tokens than this, so that little is padding, and few
#: rows of logits are computed for nothing.
SIMILAR = 16


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the rows of a sequence are: at index ``index`` of ``cache``."""

    sequence: SequenceState
    cache: Cache
    index: int


@dataclasses.dataclass(frozen=True)
class Fed:
    """What a forward pass over prompts gave.

    Args:
        tokens: Prompt tokens that were fed.
        done: Sequences whose prompt is complete.
        failed: Sequences that got an answer that is not finite.
    """

    tokens: int
    done: tuple[Place, ...] = ()
    failed: tuple[tuple[SequenceState, EngineError], ...] = ()


@dataclasses.dataclass
class _Prompt:
    """A prompt that is being fed: ``cache`` holds its first ``fed`` tokens."""

    sequence: SequenceState
    cache: Cache | None = None
    fed: int = 0

    @property
    def left(self) -> int:
        return len(self.sequence.prompt_ids) - self.fed


class PrefillQueue:
    """Prompts that are being fed, one forward pass at a time.

    Prompts take turns, so a short one never waits for a long one to be complete, and a long one
    waits at most as many turns as there are others. Short prompts that have not begun share a pass.
    What a prompt is fed depends on itself alone: it is cut into chunks from its beginning.

    Args:
        engine: The engine.
        chunk: Most tokens of a pass, padding included.
    """

    def __init__(self, engine: Engine, chunk: int = CHUNK_TOKENS) -> None:
        self._engine = engine
        self._chunk = chunk
        self._prompts: collections.deque[_Prompt] = collections.deque()

    def __len__(self) -> int:
        """Prompts that are not complete."""
        return len(self._prompts)

    def add(self, sequence: SequenceState) -> None:
        """Let a prompt wait for its turn."""
        self._prompts.append(_Prompt(sequence))

    def remove(self, gone: Collection[SequenceState]) -> None:
        """Forget prompts, begun or not; one that is not here is no error."""
        self._prompts = collections.deque(p for p in self._prompts if p.sequence not in gone)

    def turn(self) -> list[SequenceState]:
        """The sequences whose turn is next: the first, and all that can share its pass."""
        return [prompt.sequence for prompt in self._turn()]

    def feed(self) -> Fed:
        """Feed those whose turn it is; the complete and the failed leave.

        Raises:
            EngineError: The engine failed, for all whose turn it is.
        """
        members = self._turn()
        if not members:
            return Fed(0)
        cache = members[0].cache
        if cache is None:
            cache = self._engine.new_cache(len(members))
        parts = [p.sequence.prompt_ids[p.fed : p.fed + self._chunk] for p in members]
        for prompt in members:
            if not prompt.fed:
                prompt.sequence.start()
        step = feed(self._engine, cache, parts)
        self._prompts.rotate(-1)
        done: list[Place] = []
        failed: list[tuple[SequenceState, EngineError]] = []
        for index, (prompt, part) in enumerate(zip(members, parts, strict=True)):
            prompt.cache, prompt.fed = cache, prompt.fed + len(part)
            if prompt.left:
                continue
            self.remove([prompt.sequence])
            try:
                prompt.sequence.see(step, index)
                done.append(Place(prompt.sequence, cache, index))
            except EngineError as error:
                failed.append((prompt.sequence, error))
        return Fed(sum(len(part) for part in parts), tuple(done), tuple(failed))

    def _turn(self) -> list[_Prompt]:
        members: list[_Prompt] = []
        for prompt in self._prompts:
            lengths = [p.left for p in (*members, prompt)]
            fits = len(lengths) * max(lengths) <= self._chunk
            alike = max(lengths) - min(lengths) < SIMILAR
            if not members or (not prompt.fed and alike and fits):
                members.append(prompt)
            if members[0].fed:
                break
        return members


def feed(engine: Engine, cache: Cache, parts: Sequence[Sequence[int]]) -> Step:
    """Feed the next tokens of each sequence of a cache, and keep them.

    Tokens come first and padding last, so that a token is at the same place, and rounded in the
    same way, whatever it is padded to.

    Args:
        engine: The engine.
        cache: The tokens so far.
        parts: Token ids for each sequence; some may be empty, but not all.

    Returns:
        The step, with one row of logits and signals: that of each sequence's last token.
    """
    lengths = np.array([len(part) for part in parts])
    width = int(lengths.max())
    shape = (len(parts), width)
    input_ids = np.zeros(shape, np.int64)
    position_ids = np.repeat(cache.lengths[:, None], width, axis=1)
    # A padding row sees the prefix and itself; nothing else sees it.
    tree = np.broadcast_to(np.eye(width, dtype=np.bool_), (*shape, width)).copy()
    for b, part in enumerate(parts):
        size = len(part)
        input_ids[b, :size] = part
        position_ids[b, :size] += np.arange(size)
        tree[b, :size, :size] = np.tri(size, dtype=np.bool_)
    kept = width - int(lengths[lengths > 0].min()) + 1
    step = engine.forward(cache, input_ids, position_ids, tree, kept)
    engine.commit(cache, step, [range(size) for size in lengths])
    last = (np.arange(len(parts)), np.maximum(lengths - 1 - width + kept, 0))
    return dataclasses.replace(
        step,
        logits=step.logits[last][:, None],
        signals={name: values[last][:, None] for name, values in step.signals.items()},
    )


def prefill(
    engine: Engine, prompts: Sequence[Sequence[int]], chunk: int = CHUNK_TOKENS
) -> tuple[Cache, Step]:
    """Feed prompts into a new cache, all of them together.

    Args:
        engine: The engine.
        prompts: Token ids, at least one each.
        chunk: Most tokens per prompt and forward pass.

    Returns:
        The cache, and the last step, whose last row belongs to the last token of every prompt.
    """
    cache = engine.new_cache(len(prompts))
    longest = max(len(prompt) for prompt in prompts)
    for start in range(0, longest, chunk):
        # Counted from the ends, so that all prompts end in the last chunk.
        begins = [len(prompt) - longest + start for prompt in prompts]
        parts = [p[max(0, b) : max(0, b + chunk)] for p, b in zip(prompts, begins, strict=True)]
        step = feed(engine, cache, parts)
    return cache, step
