"""Load and launch compiled kernels through the CUDA driver.

Nine functions of the driver's C interface, which has been stable since CUDA 4, called by ctypes:
the library comes with every NVIDIA driver, so running a compiled kernel needs no package at all.
The caller (TensorRT) has made its context current.
"""

from __future__ import annotations

import ctypes
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from otter_export.errors import EngineError

# cuda.h, enum CUfunction_attribute and CUdevice_attribute.
_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
_MULTIPROCESSOR_COUNT = 16
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76
_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97
#: What a block may have without asking for more.
_DEFAULT_SHARED_BYTES = 48 << 10

_POINTER, _INT, _UINT = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint
_OUT_POINTER, _OUT_INT = ctypes.POINTER(_POINTER), ctypes.POINTER(_INT)
#: Functions used, with the types of their arguments; all return CUresult, an int.
_FUNCTIONS = {
    "cuInit": (_UINT,),
    "cuGetErrorString": (_INT, ctypes.POINTER(ctypes.c_char_p)),
    "cuCtxGetCurrent": (_OUT_POINTER,),
    "cuCtxGetDevice": (_OUT_INT,),
    "cuDeviceGetAttribute": (_OUT_INT, _INT, _INT),
    "cuModuleLoadData": (_OUT_POINTER, ctypes.c_char_p),
    "cuModuleGetFunction": (_OUT_POINTER, _POINTER, ctypes.c_char_p),
    "cuFuncSetAttribute": (_POINTER, _INT, _INT),
    "cuLaunchKernel": (_POINTER, *7 * (_UINT,), _POINTER, _OUT_POINTER, _OUT_POINTER),
}


@dataclasses.dataclass(frozen=True)
class Device:
    """What the launch of a kernel depends on.

    Attributes:
        context: Handle of the current context; a loaded kernel belongs to it.
        compute_capability: 10 * major + minor.
        multiprocessors: How many there are.
        shared_bytes: Most shared memory of one block.
    """

    context: int
    compute_capability: int
    multiprocessors: int
    shared_bytes: int


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel that is loaded in a context.

    Attributes:
        function: Handle.
        threads: Threads of a block.
        shared_bytes: Dynamic shared memory of a block.
    """

    function: int
    threads: int
    shared_bytes: int


class CudaDriver:
    """The CUDA driver's library.

    Args:
        library: File name of the library; None takes the platform's.

    Raises:
        EngineError: There is no NVIDIA driver, or no device.
    """

    def __init__(self, library: str | None = None) -> None:
        name = library or ("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
        try:
            self._library: Any = ctypes.CDLL(name)
        except OSError as error:
            raise EngineError(
                f"the NVIDIA driver's library {name} cannot be loaded ({error}); the fused "
                "projection runs on NVIDIA GPUs only"
            ) from None
        for function, arguments in _FUNCTIONS.items():
            getattr(self._library, function).argtypes = arguments
            getattr(self._library, function).restype = _INT
        self._call("cuInit", 0)

    def device(self) -> Device:
        """The device of the current context.

        Raises:
            EngineError: No context is current in this thread.
        """
        context = _POINTER()
        self._call("cuCtxGetCurrent", ctypes.byref(context))
        if not context.value:
            raise EngineError(
                "no CUDA context is current in this thread; make one (cudaSetDevice, "
                "torch.cuda.init) before the fused projection is loaded"
            )
        device = _INT()
        self._call("cuCtxGetDevice", ctypes.byref(device))

        def attribute(number: int) -> int:
            value = _INT()
            self._call("cuDeviceGetAttribute", ctypes.byref(value), number, device)
            return value.value

        major = attribute(_COMPUTE_CAPABILITY_MAJOR)
        return Device(
            context=context.value,
            compute_capability=10 * major + attribute(_COMPUTE_CAPABILITY_MINOR),
            multiprocessors=attribute(_MULTIPROCESSOR_COUNT),
            shared_bytes=attribute(_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
        )

    def load(self, content: bytes, symbol: str, threads: int, shared_bytes: int) -> Kernel:
        """Load a cubin in the current context; not possible while a stream is captured.

        Args:
            content: The cubin.
            symbol: Name of the kernel in it.
            threads: Threads of a block.
            shared_bytes: Dynamic shared memory of a block.

        Raises:
            EngineError: The driver refuses it.
        """
        module, function = _POINTER(), _POINTER()
        self._call("cuModuleLoadData", ctypes.byref(module), content)
        self._call("cuModuleGetFunction", ctypes.byref(function), module, symbol.encode())
        if shared_bytes > _DEFAULT_SHARED_BYTES:
            self._call("cuFuncSetAttribute", function, _MAX_DYNAMIC_SHARED_SIZE_BYTES, shared_bytes)
        return Kernel(function.value or 0, threads, shared_bytes)

    def launch(
        self,
        kernel: Kernel,
        grid: tuple[int, int],
        pointers: Sequence[int],
        integers: Sequence[int],
        stream: int,
    ) -> None:
        """Enqueue a kernel of OpenAI Triton on a stream; allowed while the stream is captured.

        Such a kernel takes its own arguments and then two pointers to scratch memory, which are
        null here (Triton's launcher does the same: backends/nvidia/driver.c of Triton 3.9).

        Args:
            kernel: The kernel.
            grid: Blocks along x and y.
            pointers: Device addresses, its first arguments; 0 for one that it does not read.
            integers: 32-bit integers, the arguments after them.
            stream: Handle of the stream.

        Raises:
            EngineError: The driver refuses the launch.
        """
        values = [
            *map(_POINTER, pointers),
            *map(ctypes.c_int32, integers),
            *(_POINTER(0), _POINTER(0)),
        ]
        addresses = (_POINTER * len(values))(*map(ctypes.addressof, values))
        self._call(
            "cuLaunchKernel",
            kernel.function,
            *(*grid, 1),
            *(kernel.threads, 1, 1),
            kernel.shared_bytes,
            stream,
            addresses,
            None,
        )

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code == 0:
            return
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(code, ctypes.byref(text))
        reason = (text.value or b"unknown error").decode(errors="replace")
        raise EngineError(f"CUDA driver: {function} failed with {code} ({reason})")
