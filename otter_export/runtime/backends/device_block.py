"""`Block` in CUDA memory: caches stay on the device, and a kept row is copied there.

ONNX Runtime's Python API allocates device memory and binds addresses inside it, but has no copy
between them, so rows move by the CUDA runtime's ``cudaMemcpy2D``.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort

from otter_export.errors import EngineError
from otter_export.runtime.backends.cache_block import BlockShape

_DEVICE_TO_DEVICE = 3
_LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so")


class Copier(Protocol):
    """Copies inside one device's memory."""

    def copy(
        self, to: int, to_pitch: int, source: int, from_pitch: int, width: int, height: int
    ) -> None:
        """Copy ``height`` stretches of ``width`` bytes, which lie a pitch of bytes apart."""
        ...

    def wait(self) -> None:
        """Return when all copies are done."""
        ...


class DeviceBlock:
    """A zeroed `Block` on one device.

    Args:
        shape: As `Block.shape`.
        dtype: float32 or float16.
        device: ONNX Runtime's name of the device.
        copier: Copies inside it; None takes the CUDA runtime.
    """

    def __init__(
        self,
        shape: BlockShape,
        dtype: np.dtype[Any],
        device: str = "cuda",
        copier: Copier | None = None,
    ) -> None:
        _, batch, heads, slots, size = shape
        self.shape = shape
        self.room = batch * slots
        self._slice = batch * heads * slots * size
        self.dtype = dtype
        self.device = device
        self._copier = _cuda_runtime() if copier is None else copier
        self._value = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype, device, 0)
        self._value.update_inplace(np.zeros(shape, dtype))
        self._pointer = int(self._value.data_ptr())

    def arrange(self, batch: int, slots: int) -> None:
        """Lay the memory out for other sizes; see `Block.arrange`."""
        slices, _, heads, _, size = self.shape
        self.shape = (slices, batch, heads, slots, size)

    def address(self, index: int) -> int:
        """Address of slice ``index``."""
        return self._at(index, 0, 0)

    def put(
        self, b: int, start: int, source: DeviceBlock, source_b: int, rows: Sequence[int]
    ) -> None:
        """Copy slots of another block; see `Block.put`.

        One copy moves a run of neighbouring slots for all heads of one slice.
        """
        slot = self.shape[4] * self.dtype.itemsize
        to_pitch, from_pitch = self.shape[3] * slot, source.shape[3] * slot
        for offset, first, count in _runs(rows):
            for index in range(self.shape[0]):
                self._copier.copy(
                    self._at(index, b, start + offset),
                    to_pitch,
                    source._at(index, source_b, first),
                    from_pitch,
                    count * slot,
                    self.shape[2],
                )

    def wait(self) -> None:
        """Return when all copies are done."""
        self._copier.wait()

    def _at(self, index: int, b: int, slot: int) -> int:
        """Address of a slot of the first head."""
        _, _, heads, slots, size = self.shape
        element = index * self._slice + (b * heads * slots + slot) * size
        return self._pointer + element * self.dtype.itemsize


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """``(offset in rows, first slot, count)`` of the runs of consecutive slots."""
    groups = itertools.groupby(enumerate(rows), key=lambda pair: pair[1] - pair[0])
    for _, group in groups:
        run = list(group)
        yield run[0][0], run[0][1], len(run)


class _CudaRuntime:
    """The two functions of libcudart that are needed here."""

    def __init__(self, library: ctypes.CDLL) -> None:
        address, size = ctypes.c_void_p, ctypes.c_size_t
        self._memcpy = library.cudaMemcpy2D
        self._memcpy.argtypes = [address, size, address, size, size, size, ctypes.c_int]
        self._synchronize = library.cudaDeviceSynchronize
        self._synchronize.argtypes = []

    def copy(
        self, to: int, to_pitch: int, source: int, from_pitch: int, width: int, height: int
    ) -> None:
        """See `Copier.copy`; between device addresses it returns before the copy is done."""
        kind = _DEVICE_TO_DEVICE
        _check(self._memcpy(to, to_pitch, source, from_pitch, width, height, kind), "cudaMemcpy2D")

    def wait(self) -> None:
        """ONNX Runtime's own stream does not wait for the stream of these copies, so this must."""
        _check(self._synchronize(), "cudaDeviceSynchronize")


def _check(status: int, function: str) -> None:
    if status != 0:
        raise EngineError(f"{function} failed with CUDA error {status}")


@functools.cache
def _cuda_runtime() -> _CudaRuntime:
    """The CUDA runtime that onnxruntime-gpu itself uses.

    Raises:
        EngineError: It is not on the library path.
    """
    for name in _LIBRARIES:
        try:
            return _CudaRuntime(ctypes.CDLL(name))
        except OSError:
            continue
    raise EngineError(
        f"the CUDA runtime was not found (tried {', '.join(_LIBRARIES)}); put its folder on "
        "LD_LIBRARY_PATH, as onnxruntime-gpu needs it too"
    )
