"""The CUDA runtime in host memory (L4), with the structures of the real ``cuda.bindings.runtime``.

Only memory is imitated: a call that the real module does not have, or a structure that it would not
accept, fails here too.
"""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

OK, OUT_OF_MEMORY = 0, 2
#: Beginnings of names that are the real module's.
_STRUCTURES = (
    "make_",
    "cudaMemcpyKind",
    "cudaMemcpy3DParms",
    "cudaStreamCaptureM",
    "cudaDeviceAttr",
)


class FakeCuda:
    """See the module's docstring.

    Args:
        runtime: The real module, for structures and for the names and arity of functions.
        limit: Bytes of the device.
    """

    def __init__(self, runtime: Any, limit: int = 1 << 30) -> None:
        self.runtime = runtime
        self.limit = limit
        self.blocks: dict[int, ctypes.Array[Any]] = {}
        self.calls: list[str] = []
        self.recording: list[Callable[[], Any]] | None = None

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.runtime, name)
        imitated = type(self).__dict__.get(f"_{name}")
        if imitated is None:
            if name.startswith(
                (
                    "make_",
                    "cudaMemcpyKind",
                    "cudaMemcpy3DParms",
                    "cudaStreamCaptureM",
                    "cudaDeviceAttr",
                )
            ):
                return real
            raise AssertionError(f"{name} is not imitated")

        def call(*arguments: Any) -> Any:
            check_arity(real, len(arguments))
            self.calls.append(name)
            return imitated(self, *arguments)

        return call

    def _cudaGetDeviceCount(self) -> Any:
        return OK, 2

    def _cudaDeviceGetAttribute(self, attribute: Any, device: int) -> Any:
        names = self.runtime.cudaDeviceAttr
        major = attribute == names.cudaDevAttrComputeCapabilityMajor
        assert major or attribute == names.cudaDevAttrComputeCapabilityMinor
        return OK, 8 if major else 6 + 3 * device

    def _cudaGetDevice(self) -> Any:
        return OK, 0

    def _cudaGetDeviceProperties(self, device: int) -> Any:
        return OK, SimpleNamespace(major=8, minor=9)

    def _cudaStreamCreateWithFlags(self, flags: int) -> Any:
        assert flags == 1
        return OK, 7

    def _cudaStreamSynchronize(self, stream: Any) -> Any:
        assert self.recording is None
        return (OK,)

    def _cudaGetErrorString(self, error: Any) -> Any:
        return OK, b"some reason"

    def _cudaGetLastError(self) -> Any:
        return (OUT_OF_MEMORY,)

    def _cudaMalloc(self, size: int) -> Any:
        if sum(map(len, self.blocks.values())) + size > self.limit:
            return OUT_OF_MEMORY, 0
        block = (ctypes.c_uint8 * size)(*([0xAB] * min(size, 64)))
        self.blocks[ctypes.addressof(block)] = block
        return OK, ctypes.addressof(block)

    def _cudaMallocHost(self, size: int) -> Any:
        return self._cudaMalloc(size)

    def _cudaFree(self, pointer: int) -> Any:
        del self.blocks[pointer]
        return (OK,)

    def _cudaFreeHost(self, pointer: int) -> Any:
        return self._cudaFree(pointer)

    def _cudaMemsetAsync(self, pointer: int, value: int, size: int, stream: Any) -> Any:
        ctypes.memset(pointer, value, size)
        return (OK,)

    def _cudaMemset3DAsync(self, to: Any, value: int, extent: Any, stream: Any) -> Any:
        assert extent.width <= to.pitch and extent.height <= to.ysize
        for z in range(extent.depth):
            for y in range(extent.height):
                row = int(to.ptr) + (z * to.ysize + y) * to.pitch
                ctypes.memset(row, value, extent.width)
        return (OK,)

    def _cudaMemcpyAsync(self, to: int, source: int, size: int, kind: Any, stream: Any) -> Any:
        ctypes.memmove(to, source, size)
        return (OK,)

    def _cudaMemcpy3DAsync(self, parameters: Any, stream: Any) -> Any:
        assert int(parameters.kind) == 3
        to, source, extent = parameters.dstPtr, parameters.srcPtr, parameters.extent
        assert extent.width <= to.pitch and extent.height <= to.ysize
        for z in range(extent.depth):
            for y in range(extent.height):
                ctypes.memmove(
                    int(to.ptr) + (z * to.ysize + y) * to.pitch,
                    int(source.ptr) + (z * source.ysize + y) * source.pitch,
                    extent.width,
                )
        return (OK,)

    def _cudaStreamBeginCapture(self, stream: Any, mode: Any) -> Any:
        self.recording = []
        return (OK,)

    def _cudaStreamEndCapture(self, stream: Any) -> Any:
        recorded, self.recording = self.recording, None
        return OK, recorded

    def _cudaGraphInstantiate(self, graph: Any, flags: int) -> Any:
        return OK, list(graph)

    def _cudaGraphDestroy(self, graph: Any) -> Any:
        return (OK,)

    def _cudaGraphExecDestroy(self, executable: Any) -> Any:
        return (OK,)

    def _cudaGraphLaunch(self, executable: Any, stream: Any) -> Any:
        for run in executable:
            run()
        return (OK,)


def check_arity(function: Any, count: int) -> None:
    """The real function must take so many arguments, where its signature is known."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return
    positional = [p for p in parameters if p.kind is not p.KEYWORD_ONLY]
    needed = [p for p in positional if p.default is p.empty]
    assert len(needed) <= count <= len(positional), f"{function.__name__}: {count} arguments"
