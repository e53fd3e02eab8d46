"""`SlotBlock` as a torch tensor, on the CPU or on a GPU; torch is imported when one is made."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from otter_export.errors import EngineError
from otter_export.runtime.backends.slot_pool import SlotPool
from otter_export.runtime.engine import IntArray

if TYPE_CHECKING:
    import torch

Shape = tuple[int, int, int, int, int]


class TorchSlots:
    """A `SlotBlock` in a torch tensor; copies run on torch's current stream.

    Args:
        tensor: Of `SlotBlock.shape`, zero.
    """

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

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
        to, at, b, t = (self._index(a) for a in (places, slots, source_places, source_slots))
        self.tensor[:, to, :, at] = source.tensor[:, b, :, t]

    def clear(self, place: int) -> None:
        """Set all slots of a place to zero."""
        self.tensor[:, place].zero_()

    def _index(self, values: npt.NDArray[Any]) -> torch.Tensor:
        import torch

        return torch.from_numpy(values).to(self.tensor.device)


class TorchMemory:
    """Makes `TorchSlots`, from memory of earlier ones where the size is the same.

    Args:
        device: torch's name of the device: ``cpu``, ``cuda``.
        dropped: Called with the address of memory that is given up.
    """

    def __init__(self, device: str, dropped: Callable[[int], None]) -> None:
        self._device = device
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
            pooled.memory.zero_()
        slots = TorchSlots(pooled.memory)
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
                return torch.zeros(shape, dtype=element, device=self._device)
            except torch.OutOfMemoryError:
                if attempt == 0:
                    self._pool.clear()
        size = math.prod(shape) * element.itemsize / 2**30
        raise EngineError(
            f"the GPU has no {size:.1f} GiB left for a cache of {shape[1]} sequences of {shape[3]} "
            "tokens; give a smaller --batch-size"
        )
