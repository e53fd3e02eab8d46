"""`Executor`: one loaded model on one device; memory for caches, and a way to run one step.

`StepEngine` holds all logic and knows no library; an executor knows one library and holds no logic:
ONNX Runtime, TensorRT, torch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from otter_export.engine_io import EngineIO
from otter_export.runtime.engine import BoolArray, FloatArray, IntArray
from otter_export.runtime.memory.block import Block, Memory

#: Tokens behind one another, in one step, that are tried to be as they are alone.
MOST_CHAINED = 8
#: The memory of a batch: a block for each cache of an engine, or as the executor divides it.
Blocks = tuple[Block, ...]


@dataclasses.dataclass(frozen=True)
class StepInputs:
    """The inputs of one run but for the caches, by the names that they have in the graph.

    Args:
        arrays: int64 and bool, C-contiguous.
        shape: ``(B, S, R)``: sequences, tokens of each, rows whose logits and signals come out.
    """

    arrays: Mapping[str, IntArray | BoolArray]
    shape: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class RowRule:
    """What a step needs so that a token gets the same numbers whoever else is in it.

    Args:
        pairs: Rows come in pairs: an odd step is padded by a row that nobody sees.
        even_steps: A step with candidates has an even number of tokens; implied by ``pairs``.
    """

    pairs: bool
    even_steps: bool


class Executor(Protocol):
    """One loaded model on one device."""

    @property
    def cache_form(self) -> str:
        """`engine_io.READ_ONLY`: new rows come out apart; `engine_io.IN_PLACE`: in their slots."""
        ...

    @property
    def row_rule(self) -> RowRule:
        """What its kernels need of the number of rows."""
        ...

    @property
    def chains_alike(self) -> bool:
        """Whether a token behind others of its step gets the numbers that it gets alone.

        Bit for bit: logits, signals and rows, for steps of up to `MOST_CHAINED` tokens.
        """
        ...

    @property
    def max_batch_size(self) -> int:
        """Most sequences of a run."""
        ...

    def accepts(self, batch: int, step: int, kept: int) -> bool:
        """Whether the model runs on ``batch`` sequences of ``step`` tokens, keeping ``kept``."""
        ...

    def slots(self, needed: int, held: int = 0) -> int:
        """Slots per sequence of a cache that has to hold ``needed`` tokens; may be fewer.

        Args:
            needed: Tokens.
            held: Slots that it has now, which are too few; it grows by a share of them.
        """
        ...

    def blocks(self, places: int, slots: int, *, zeroed: bool = True) -> Blocks:
        """Memory for a cache, or for new rows; see `Memory.block`.

        Raises:
            EngineError: The device has not enough memory.
        """
        ...

    def run(self, blocks: Any, inputs: StepInputs, rows: Any = None) -> Mapping[str, FloatArray]:
        """Run the model.

        Args:
            blocks: Of `blocks`, with at least B places: the caches.
            inputs: What to run.
            rows: Of `blocks`, of B places and S slots, for the new rows; None where the model
                writes them into the caches.

        Returns:
            Name to ``[B, R, V]`` or ``[B, R]`` float32: logits and signals, as copies.

        Raises:
            EngineError: The library reports a failure.
        """
        ...


def cache_blocks(
    memory: Memory, io: EngineIO, places: int, slots: int, *, zeroed: bool = True
) -> Blocks:
    """A block for each cache of an engine."""
    return tuple(
        memory.block((len(c.pasts()), places, c.heads, slots, io.head_dim), c.dtype, zeroed=zeroed)
        for c in io.caches
    )
