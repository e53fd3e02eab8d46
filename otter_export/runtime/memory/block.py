"""Blocks: the memory of a KV cache, and the moves of rows in it; the same on every device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

#: Slices, places, heads, slots, head size.
BlockShape = tuple[int, int, int, int, int]


class Move(NamedTuple):
    """A copy of ``rows`` rows that follow each other, for all heads and slices.

    Args:
        place, slot: Where the first row goes.
        source_place, source_slot: Where it comes from.
        rows: How many.
    """

    place: int
    slot: int
    source_place: int
    source_slot: int
    rows: int


class Block(Protocol):
    """One cache, ``[slices, places, heads, slots, head size]``.

    A slice holds the keys or the values of a layer (`CacheSpec.pasts`). A place holds one sequence.
    The first B places of a slice are contiguous, so a batch of B sequences is bound to the graph by
    the slice's address.
    """

    @property
    def shape(self) -> BlockShape:
        """The five sizes above."""
        ...

    @property
    def dtype(self) -> str:
        """``float32``, ``float16`` or ``bfloat16``."""
        ...

    def address(self, index: int) -> int:
        """Address of slice ``index``."""
        ...

    def put(self, moves: Sequence[Move], source: Any) -> None:
        """Copy rows of a block on the same device, or of this one.

        Args:
            moves: Which; no row is written twice. All are read before any is written.
            source: The block to read.
        """
        ...

    def clear(self, place: int, start: int) -> None:
        """Set the slots of a place from ``start`` on to zero."""
        ...


class Memory(Protocol):
    """Makes blocks on one device."""

    def block(self, shape: BlockShape, dtype: str, *, zeroed: bool = True) -> Block:
        """A block; its memory comes back by itself when nobody has it any more.

        Args:
            shape: As `Block.shape`.
            dtype: As `Block.dtype`.
            zeroed: Whether it must be zero: a slot that is not in use is masked, but must not hold
                a NaN. Else it holds anything.

        Raises:
            EngineError: The device has not enough memory.
        """
        ...

    def clear(self) -> None:
        """Give up all memory that nothing uses."""
        ...


def kept_moves(
    lengths: Sequence[int], rows: Sequence[Sequence[int]], firsts: Sequence[int]
) -> list[Move]:
    """How the kept rows of a step come to stand behind their prefixes.

    Args:
        lengths: ``[B]``: rows in use; the first slot to write of each sequence.
        rows: For each sequence the tokens of the step to keep, in order.
        firsts: ``[B]``: slots of the step's first tokens in the block that is read.
    """
    return [
        Move(b, length + offset, b, first + row, count)
        for b, (length, kept, first) in enumerate(zip(lengths, rows, firsts, strict=True))
        for offset, row, count in runs(kept)
    ]


def runs(rows: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """``(offset, first row, count)`` of the stretches of rows that follow each other."""
    groups = itertools.groupby(enumerate(rows), key=lambda pair: pair[1] - pair[0])
    for _, group in groups:
        members = list(group)
        yield members[0][0], int(members[0][1]), len(members)


def cache_words(shape: BlockShape) -> str:
    """A block in words, for messages."""
    return f"a cache of {shape[1]} sequences of {shape[3]} tokens"
