"""`SlotBlock` in the host's memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export.runtime.engine import IntArray


class HostSlots:
    """A `SlotBlock` that is a numpy array.

    Args:
        shape: As `SlotBlock.shape`.
        dtype: Of keys and values.
    """

    def __init__(self, shape: tuple[int, int, int, int, int], dtype: np.dtype[Any]) -> None:
        self.array: npt.NDArray[Any] = np.zeros(shape, dtype)
        self.shape = shape

    def address(self, index: int) -> int:
        """Address of slice ``index``."""
        return int(self.array[index].ctypes.data)

    def put(
        self,
        places: IntArray,
        slots: IntArray,
        source: HostSlots,
        source_places: IntArray,
        source_slots: IntArray,
    ) -> None:
        """Copy slots; see `SlotBlock.put`. Indexing by arrays reads into a copy first."""
        self.array[:, places, :, slots] = source.array[:, source_places, :, source_slots]

    def clear(self, place: int, start: int) -> None:
        """Set slots to zero; see `SlotBlock.clear`."""
        self.array[:, place, :, start:] = 0
