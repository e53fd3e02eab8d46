"""`Device` through NVIDIA's cuda-bindings, for machines without torch."""

from __future__ import annotations

import ctypes
import functools
import importlib
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export.errors import EngineError
from otter_export.runtime.backends.cuda_slots import CudaMemory
from otter_export.runtime.backends.device import as_bytes, out_of_memory

#: cudaErrorMemoryAllocation.
_OUT_OF_MEMORY = 2
#: cudaStreamNonBlocking: no implicit order with the default stream.
_NON_BLOCKING = 1


class Cuda:
    """Calls of the CUDA runtime that raise.

    Args:
        runtime: ``cuda.bindings.runtime``: each function returns an error code and its results.
    """

    def __init__(self, runtime: Any) -> None:
        self.runtime = runtime

    def __call__(self, function: str, *arguments: Any) -> Any:
        """Call a function; None, its result, or a tuple of its results.

        Raises:
            EngineError: It failed.
        """
        error, *results = getattr(self.runtime, function)(*arguments)
        if int(error) != 0:
            raise EngineError(f"{function} failed: {self._name(error)}")
        return results[0] if len(results) == 1 else tuple(results) or None

    def allocate(self, size: int, what: str) -> int:
        """Address of ``size`` bytes on the device.

        Raises:
            EngineError: There is no room.
        """
        error, pointer = self.runtime.cudaMalloc(size)
        if int(error) == _OUT_OF_MEMORY:
            # The error stays until it is asked for, and would show up at a later call.
            self.runtime.cudaGetLastError()
            raise out_of_memory(size, what)
        if int(error) != 0:
            raise EngineError(f"cudaMalloc failed: {self._name(error)}")
        return int(pointer)

    def free(self, pointer: int) -> None:
        """Free device memory; at the end of the process there may be no driver any more."""
        self.runtime.cudaFree(pointer)

    def _name(self, error: Any) -> str:
        _, text = self.runtime.cudaGetErrorString(error)
        return f"{text.decode() if isinstance(text, bytes) else text} (CUDA error {int(error)})"


class CudaBuffer:
    """`Buffer` with page-locked memory on the host, from which copies are fast.

    Args:
        cuda: The runtime.
        size: Bytes.
        stream: Of the device.
    """

    def __init__(self, cuda: Cuda, size: int, stream: Any) -> None:
        self.size = size
        self._cuda, self._stream = cuda, stream
        self._kinds = cuda.runtime.cudaMemcpyKind
        self.address = cuda.allocate(size, "inputs and outputs")
        weakref.finalize(self, cuda.free, self.address).atexit = False

    @functools.cached_property
    def _host(self) -> npt.NDArray[np.uint8]:
        """Made at the first copy: TensorRT's working memory has none."""
        host = int(self._cuda("cudaMallocHost", self.size))
        weakref.finalize(self, self._cuda.runtime.cudaFreeHost, host).atexit = False
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(host))

    def write(self, array: npt.NDArray[Any]) -> None:
        """Copy from the host; see `Buffer.write`."""
        flat = as_bytes(array)
        self._host[: flat.size] = flat
        kind = self._kinds.cudaMemcpyHostToDevice
        self._copy(self.address, self._host.ctypes.data, flat.size, kind)

    def read(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Copy to the host; see `Buffer.read`."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        kind = self._kinds.cudaMemcpyDeviceToHost
        self._copy(self._host.ctypes.data, self.address, size, kind)
        self._cuda("cudaStreamSynchronize", self._stream)
        return self._host[:size].view(dtype).reshape(shape).copy()

    def _copy(self, to: int, source: int, size: int, kind: Any) -> None:
        self._cuda("cudaMemcpyAsync", to, source, size, kind, self._stream)


class CudaDevice:
    """CUDA's current device.

    Args:
        runtime: A stand-in for ``cuda.bindings.runtime``, for tests.

    Raises:
        EngineError: There is none, or the driver does not work.
    """

    def __init__(self, runtime: Any = None) -> None:
        self._cuda = Cuda(runtime or importlib.import_module("cuda.bindings.runtime"))
        try:
            device = self._cuda("cudaGetDevice")
            properties = self._cuda("cudaGetDeviceProperties", device)
        except EngineError as error:
            raise EngineError(
                f"a TensorRT engine needs an NVIDIA GPU; {error}; run it on a machine with one, or "
                "build with --target onnx"
            ) from None
        self.capability = f"{properties.major}.{properties.minor}"
        self._stream = self._cuda("cudaStreamCreateWithFlags", _NON_BLOCKING)

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return int(self._stream)

    def memory(self, dropped: Callable[[int], None]) -> CudaMemory:
        """Memory for caches; see `Device.memory`."""
        return CudaMemory(self._cuda, self._stream, dropped)

    def buffer(self, size: int) -> CudaBuffer:
        """Memory of a fixed address; see `Device.buffer`."""
        return CudaBuffer(self._cuda, size, self._stream)

    def synchronize(self) -> None:
        """Wait for the stream; see `Device.synchronize`."""
        self._cuda("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph; see `Device.capture`."""
        # Other threads may use the GPU for something else meanwhile.
        mode = self._cuda.runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._cuda("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        finally:
            # Ends the capture also when the work failed, else the stream stays unusable.
            error, graph = self._cuda.runtime.cudaStreamEndCapture(self._stream)
        if int(error) != 0:
            raise EngineError(f"no CUDA graph: cudaStreamEndCapture failed with {int(error)}")
        executable = self._cuda("cudaGraphInstantiate", graph, 0)
        self._cuda("cudaGraphDestroy", graph)
        return _Launch(self._cuda, executable, self._stream)


class _Launch:
    """Launches a CUDA graph, and destroys it when nobody can any more."""

    def __init__(self, cuda: Cuda, executable: Any, stream: Any) -> None:
        self._cuda, self._executable, self._stream = cuda, executable, stream
        weakref.finalize(self, cuda.runtime.cudaGraphExecDestroy, executable).atexit = False

    def __call__(self) -> None:
        self._cuda("cudaGraphLaunch", self._executable, self._stream)
