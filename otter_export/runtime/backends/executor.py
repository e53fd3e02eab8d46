"""What the in-place engine needs of a device: memory for caches, and a way to run one step.

`InPlaceEngine` holds all logic and knows no library; an `Executor` knows one library and holds no
logic: TensorRT, PyTorch, or ONNX Runtime on the CPU, which runs the very same graph as TensorRT.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

from otter_export.runtime.engine import BoolArray, FloatArray, IntArray


class SlotBlock(Protocol):
    """Keys and values of all layers, ``[2 * layers, places, heads, slots, head size]``.

    Slice ``2 * n`` holds the keys of layer n and slice ``2 * n + 1`` its values. A place holds one
    sequence. The first B places of a slice are contiguous, so a batch of B sequences is bound to
    the graph by the slice's address. New memory is zero: an unused slot is masked, but must not
    hold a NaN.
    """

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """The five sizes above."""
        ...

    def address(self, index: int) -> int:
        """Address of slice ``index``."""
        ...

    def put(
        self,
        places: IntArray,
        slots: IntArray,
        source: Any,
        source_places: IntArray,
        source_slots: IntArray,
    ) -> None:
        """Copy slots of a block of this kind, itself included: all are read before any is written.

        Args:
            places: ``[n]``: places to write.
            slots: ``[n]``: slots to write, one in each of ``places``; no pair occurs twice.
            source: Block to read.
            source_places: ``[n]``: places to read.
            source_slots: ``[n]``: slots to read.
        """
        ...

    def clear(self, place: int, start: int) -> None:
        """Set the slots of a place from ``start`` on to zero."""
        ...


@dataclasses.dataclass(frozen=True)
class StepInputs:
    """The inputs of one run but for the caches; int64 and bool, C-contiguous.

    Args:
        input_ids: ``[B, S]``.
        position_ids: ``[B, S]``.
        attention_mask: ``[B, 1, S, slots]``: True where a token sees a slot.
        write_indices: ``[B]``: the slot of each sequence's first token.
        kept_rows: ``[B, R]``: tokens whose logits and signals come out.
    """

    input_ids: IntArray
    position_ids: IntArray
    attention_mask: BoolArray
    write_indices: IntArray
    kept_rows: IntArray

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(B, S, R)``."""
        batch, step = self.input_ids.shape
        return batch, step, self.kept_rows.shape[1]

    def arrays(self) -> dict[str, IntArray | BoolArray]:
        """The inputs by the names that they have in the graph."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}


class Executor(Protocol):
    """One loaded model on one device."""

    @property
    def max_batch_size(self) -> int:
        """Most sequences of a run."""
        ...

    def accepts(self, batch: int, step: int, kept: int) -> bool:
        """Whether the model runs on ``batch`` sequences of ``step`` tokens, keeping ``kept``."""
        ...

    def slots(self, needed: int) -> int:
        """Slots per sequence of a cache that has to hold ``needed`` tokens; may be fewer."""
        ...

    def blocks(self, places: int, slots: int) -> tuple[SlotBlock, ...]:
        """New cache memory: what `run` takes.

        Raises:
            EngineError: The device has not enough memory.
        """
        ...

    def run(self, blocks: tuple[Any, ...], inputs: StepInputs) -> Mapping[str, FloatArray]:
        """Run the model; new rows go into the slots from ``write_indices`` on.

        Args:
            blocks: Of `blocks`, with at least B places.
            inputs: What to run.

        Returns:
            Name to ``[B, R, V]`` or ``[B, R]`` float32: logits and signals, as copies.

        Raises:
            EngineError: The library reports a failure.
        """
        ...
