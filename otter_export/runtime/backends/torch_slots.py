"""`SlotBlock` as a torch tensor, on the CPU or on a GPU; torch is imported when one is made."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from otter_export.runtime.backends.device import Shape, cache_words, out_of_memory
from otter_export.runtime.backends.slot_pool import SlotPool
from otter_export.runtime.engine import IntArray

if TYPE_CHECKING:
    import torch


class TorchSlots:
    """A `SlotBlock` in a torch tensor.

    Args:
        tensor: Of `SlotBlock.shape`, zero.
        stream: On which copies run; None is torch's current stream.
    """

    def __init__(self, tensor: torch.Tensor, stream: torch.cuda.Stream | None = None) -> None:
        self.tensor = tensor
        self._stream = stream

    @property
    def shape(self) -> Shape:
        """As `SlotBlock.shape`."""
        layers, places, heads, slots, size = self.tensor.shape
        return layers, places, heads, slots, size

    def address(self, index: int) -> int:
        """Address of slice ``index``."""
        return int(self.tensor[index].data_ptr())

    def put(
        self,
        places: IntArray,
        slots: IntArray,
        source: TorchSlots,
        source_places: IntArray,
        source_slots: IntArray,
    ) -> None:
        """Copy slots; see `SlotBlock.put`. Indexing by tensors reads into a copy first."""
        with on_stream(self._stream):
            to, at, b, t = (self._index(a) for a in (places, slots, source_places, source_slots))
            self.tensor[:, to, :, at] = source.tensor[:, b, :, t]

    def clear(self, place: int, start: int) -> None:
        """Set slots to zero; see `SlotBlock.clear`."""
        with on_stream(self._stream):
            self.tensor[:, place, :, start:].zero_()

    def _index(self, values: npt.NDArray[Any]) -> torch.Tensor:
        import torch

        return torch.from_numpy(values).to(self.tensor.device)


def on_stream(stream: torch.cuda.Stream | None) -> contextlib.AbstractContextManager[Any]:
    """Let torch work on a stream; None changes nothing, and needs no GPU."""
    import torch

    return contextlib.nullcontext() if stream is None else torch.cuda.stream(stream)


class TorchMemory:
    """Makes `TorchSlots`, from memory of earlier ones where the size is the same.

    Args:
        device: torch's name of the device: ``cpu``, ``cuda``.
        dropped: Called with the address of memory that is given up.
        stream: On which it is used; None is torch's current stream.
    """

    def __init__(
        self,
        device: str,
        dropped: Callable[[int], None],
        stream: torch.cuda.Stream | None = None,
    ) -> None:
        self._device = device
        self._stream = stream
        self._pool: SlotPool[torch.Tensor] = SlotPool(lambda tensor: dropped(tensor.data_ptr()))

    def slots(self, shape: Shape, dtype: str) -> TorchSlots:
        """Zeroed memory.

        Args:
            shape: As `SlotBlock.shape`.
            dtype: torch's name of the dtype: ``float32``, ``float16``, ``bfloat16``.

        Raises:
            EngineError: The device has not enough.
        """
        pooled, new = self._pool.take((shape, dtype), lambda: self._new(shape, dtype))
        if not new:
            with on_stream(self._stream):
                pooled.memory.zero_()
        slots = TorchSlots(pooled.memory, self._stream)
        # No reference to the slots themselves, else they would never go.
        weakref.finalize(slots, self._pool.give, pooled).atexit = False
        return slots

    def clear(self) -> None:
        """Give up all memory that nothing uses."""
        self._pool.clear()

    def _new(self, shape: Shape, dtype: str) -> torch.Tensor:
        import torch

        element: torch.dtype = getattr(torch, dtype)
        for attempt in range(2):
            try:
                with on_stream(self._stream):
                    return torch.zeros(shape, dtype=element, device=self._device)
            except torch.OutOfMemoryError:
                if attempt == 0:
                    self._pool.clear()
        raise out_of_memory(math.prod(shape) * element.itemsize, cache_words(shape))
