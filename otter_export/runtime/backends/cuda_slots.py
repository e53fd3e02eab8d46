"""`SlotBlock` in CUDA memory, moved by ``cudaMemcpy3D``: one copy for a run of slots of a place."""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from otter_export.errors import EngineError
from otter_export.runtime.backends.device import ITEM_SIZES, Shape, cache_words
from otter_export.runtime.backends.slot_pool import SlotPool
from otter_export.runtime.engine import IntArray

if TYPE_CHECKING:
    from otter_export.runtime.backends.cuda_device import Cuda


class CudaSlots:
    """A `SlotBlock` at an address.

    Args:
        memory: What made it, for copies of what is moved inside it.
        pointer: The address.
        shape: As `SlotBlock.shape`.
        dtype: Of `ITEM_SIZES`.
    """

    def __init__(self, memory: CudaMemory, pointer: int, shape: Shape, dtype: str) -> None:
        self._memory = memory
        self.pointer = pointer
        self.shape = shape
        self.dtype = dtype
        #: Bytes of one slot of one head.
        self.slot = shape[4] * ITEM_SIZES[dtype]

    def address(self, index: int) -> int:
        """Address of slice ``index``."""
        return self.at(index, 0, 0)

    def at(self, index: int, place: int, slot: int) -> int:
        """Address of a slot of a slice's first head."""
        _, places, heads, slots, _ = self.shape
        return self.pointer + ((index * places + place) * heads * slots + slot) * self.slot

    def put(
        self,
        places: IntArray,
        slots: IntArray,
        source: CudaSlots,
        source_places: IntArray,
        source_slots: IntArray,
    ) -> None:
        """Copy slots; see `SlotBlock.put`."""
        if source is self and _overlap(places, slots, source_places, source_slots):
            # Read all before any is written.
            layers, _, heads, _, size = self.shape
            count = len(places)
            copied = self._memory.slots((layers, 1, heads, count, size), self.dtype)
            zeros, order = np.zeros(count, np.int64), np.arange(count)
            copied.put(zeros, order, self, source_places, source_slots)
            source, source_places, source_slots = copied, zeros, order
        for first, count in runs(places, slots, source_places, source_slots):
            self._memory.copy(
                (self, int(places[first]), int(slots[first])),
                (source, int(source_places[first]), int(source_slots[first])),
                count,
            )

    def clear(self, place: int, start: int) -> None:
        """Set slots to zero; see `SlotBlock.clear`."""
        if start < self.shape[3]:
            self._memory.zero(self, place, start)


def runs(*columns: IntArray) -> Iterator[tuple[int, int]]:
    """``(first, count)`` of the stretches in which both slots follow each other in one place.

    Args:
        columns: ``[n]``: places, slots, places to read, slots to read.
    """

    def key(index: int) -> tuple[int, ...]:
        place, slot, source_place, source_slot = (int(c[index]) for c in columns)
        return place, slot - index, source_place, source_slot - index

    for _, group in itertools.groupby(range(len(columns[0])), key=key):
        members = list(group)
        yield members[0], len(members)


def _overlap(
    places: IntArray, slots: IntArray, source_places: IntArray, source_slots: IntArray
) -> bool:
    """Whether a slot is both written and read."""
    written = set(zip(places.tolist(), slots.tolist(), strict=True))
    return not written.isdisjoint(zip(source_places.tolist(), source_slots.tolist(), strict=True))


class CudaMemory:
    """Makes `CudaSlots`, from memory of earlier ones where the size is the same.

    Args:
        cuda: The runtime.
        stream: On which copies run.
        dropped: Called with the address of memory that is given up.
    """

    def __init__(self, cuda: Cuda, stream: Any, dropped: Callable[[int], None]) -> None:
        self._cuda, self._stream = cuda, stream

        def drop(pointer: int) -> None:
            dropped(pointer)
            cuda.free(pointer)

        self._pool: SlotPool[int] = SlotPool(drop)

    def slots(self, shape: Shape, dtype: str) -> CudaSlots:
        """Zeroed memory; see `SlotMemory.slots`."""
        size = math.prod(shape) * ITEM_SIZES[dtype]
        pooled, _ = self._pool.take((shape, dtype), lambda: self._new(size, shape))
        slots = CudaSlots(self, pooled.memory, shape, dtype)
        weakref.finalize(slots, self._pool.give, pooled).atexit = False
        self._cuda("cudaMemsetAsync", pooled.memory, 0, size, self._stream)
        return slots

    def clear(self) -> None:
        """Give up all memory that nothing uses."""
        self._pool.clear()

    def zero(self, slots: CudaSlots, place: int, start: int) -> None:
        """Set the slots of a place from ``start`` on to zero, for all heads and slices."""
        width = (slots.shape[3] - start) * slots.slot
        extent = self._cuda.runtime.make_cudaExtent(width, slots.shape[2], slots.shape[0])
        corner = self._pitched(slots, place, start)
        self._cuda("cudaMemset3DAsync", corner, 0, extent, self._stream)

    def copy(
        self, to: tuple[CudaSlots, int, int], source: tuple[CudaSlots, int, int], count: int
    ) -> None:
        """Copy slots that follow each other, for all heads and slices.

        Args:
            to: Block, place and first slot to write.
            source: Block, place and first slot to read.
            count: Slots.
        """
        runtime, block = self._cuda.runtime, to[0]
        parameters = runtime.cudaMemcpy3DParms()
        parameters.dstPtr, parameters.srcPtr = self._pitched(*to), self._pitched(*source)
        parameters.extent = runtime.make_cudaExtent(
            count * block.slot, block.shape[2], block.shape[0]
        )
        parameters.kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._cuda("cudaMemcpy3DAsync", parameters, self._stream)

    def _pitched(self, slots: CudaSlots, place: int, slot: int) -> Any:
        """A slot as the corner of a box: slots by heads by slices."""
        _, places, heads, length, _ = slots.shape
        pitch = length * slots.slot
        return self._cuda.runtime.make_cudaPitchedPtr(
            slots.at(0, place, slot), pitch, pitch, places * heads
        )

    def _new(self, size: int, shape: Shape) -> int:
        try:
            return self._cuda.allocate(size, cache_words(shape))
        except EngineError:
            # What nothing uses may be enough.
            self._pool.clear()
            return self._cuda.allocate(size, cache_words(shape))
