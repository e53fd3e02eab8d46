"""A CUDA device as a TensorRT engine needs it: memory, one stream, and CUDA graphs.

Two libraries can give it, PyTorch and NVIDIA's cuda-bindings; `open_device` takes the one that is
there, so that a machine that serves needs no torch.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from otter_export.errors import EngineError, MissingDependencyError
from otter_export.runtime.backends.executor import SlotBlock

#: ``[2 * layers, places, heads, slots, head size]``.
Shape = tuple[int, int, int, int, int]
ITEM_SIZES = {"float32": 4, "float16": 2, "bfloat16": 2}


class Buffer(Protocol):
    """Device memory of a fixed address for what moves between host and device in every step."""

    @property
    def address(self) -> int:
        """Where it is, aligned to 256 bytes."""
        ...

    @property
    def size(self) -> int:
        """Bytes."""
        ...

    def write(self, array: npt.NDArray[Any]) -> None:
        """Copy from the host, in the order of the device's stream."""
        ...

    def read(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Copy to the host: a new array, complete when this returns."""
        ...


class SlotMemory(Protocol):
    """Makes the memory of caches."""

    def slots(self, shape: Shape, dtype: str) -> SlotBlock:
        """Zeroed memory of a dtype of `ITEM_SIZES`.

        Raises:
            EngineError: The device has not enough.
        """
        ...

    def clear(self) -> None:
        """Give up all memory that nothing uses."""
        ...


class Device(Protocol):
    """One CUDA device; all its work is in the order of one stream."""

    @property
    def capability(self) -> str:
        """Compute capability, as ``8.9``."""
        ...

    @property
    def stream(self) -> int:
        """Handle of the stream; not the default one, on which TensorRT would synchronise."""
        ...

    def memory(self, dropped: Callable[[int], None]) -> SlotMemory:
        """Memory for caches.

        Args:
            dropped: Called with the address of memory that is given up.
        """
        ...

    def buffer(self, size: int) -> Buffer:
        """Memory of ``size`` bytes.

        Raises:
            EngineError: The device has not enough.
        """
        ...

    def synchronize(self) -> None:
        """Return when all work is done.

        Raises:
            EngineError: Some of it failed.
        """
        ...

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph of what ``work`` puts on the stream; calling it launches the graph.

        Raises:
            EngineError: The work cannot be captured.
        """
        ...


def open_device() -> Device:
    """The first CUDA device, through torch if it has one, else through cuda-bindings.

    Raises:
        EngineError: There is no CUDA device, or its driver does not work.
        MissingDependencyError: Neither library is installed.
    """
    problem: EngineError | None = None
    if importlib.util.find_spec("torch") is not None:
        from otter_export.runtime.backends.torch_device import TorchDevice

        try:
            return TorchDevice()
        # A torch without CUDA must not hide a working cuda-bindings.
        except EngineError as error:
            problem = error
    if _has_cuda_bindings():
        from otter_export.runtime.backends.cuda_device import CudaDevice

        return CudaDevice()
    if problem is not None:
        raise problem
    raise MissingDependencyError("cuda-bindings", "trt", "running a TensorRT engine")


def _has_cuda_bindings() -> bool:
    try:
        return importlib.util.find_spec("cuda.bindings") is not None
    except ModuleNotFoundError:  # there is no package ``cuda``
        return False


def out_of_memory(size: int, what: str) -> EngineError:
    """The error for a device that has no ``size`` bytes left for ``what``."""
    return EngineError(
        f"the GPU has no {size / 2**30:.2f} GiB left for {what}; give a smaller --batch-size, or "
        "free its memory"
    )


def cache_words(shape: Shape) -> str:
    """A cache's memory in words, for messages."""
    return f"a cache of {shape[1]} sequences of {shape[3]} tokens"


def as_bytes(array: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """The bytes of a C-contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8)
