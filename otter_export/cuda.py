"""CUDA, as far as it is needed here, over NVIDIA's cuda-bindings.

`CudaDevice`: memory, copies, one stream and CUDA graphs, for engines that run outside of torch; so
a machine that serves needs no torch. `KernelLibrary`: kernels that were compiled ahead of time, in
the context of whoever calls. cuda-bindings is imported when one of them is made.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import importlib
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from otter_export.errors import EngineError, MissingDependencyError

#: cudaErrorMemoryAllocation.
_OUT_OF_MEMORY = 2
#: cudaStreamNonBlocking: no implicit order with the default stream, on which TensorRT would
#: synchronise.
_NON_BLOCKING = 1
#: Shared memory that a block may have without asking for more.
_DEFAULT_SHARED_BYTES = 48 << 10
#: A corner of a box of bytes: its address, the bytes from row to row, and rows from plane to plane.
Corner = tuple[int, int, int]
#: Bytes of a row, rows, and planes.
Box = tuple[int, int, int]


class _Calls:
    """Calls of an interface of CUDA that raise.

    Args:
        module: ``cuda.bindings.runtime`` or ``cuda.bindings.driver``, each of whose functions
            returns an error code and its results.
        describe: Name of its function that gives an error's text.
    """

    def __init__(self, module: Any, describe: str) -> None:
        self.module = module
        self._describe = getattr(module, describe)

    def __call__(self, function: str, *arguments: Any) -> Any:
        """Call a function; None, its result, or a tuple of its results.

        Raises:
            EngineError: It failed.
        """
        error, *results = getattr(self.module, function)(*arguments)
        self.check(function, error)
        return results[0] if len(results) == 1 else tuple(results) or None

    def check(self, function: str, error: Any) -> None:
        """Raise `EngineError` unless a function succeeded."""
        if int(error) != 0:
            _, text = self._describe(error)
            reason = text.decode() if isinstance(text, bytes) else text or "unknown error"
            raise EngineError(f"{function} failed with {int(error)} ({reason})")


def _bindings(name: str, what: str) -> Any:
    try:
        return importlib.import_module(f"cuda.bindings.{name}")
    except ModuleNotFoundError:
        raise MissingDependencyError("cuda-bindings", "trt", what) from None


class CudaDevice:
    """CUDA's current device; all work is in the order of one stream.

    Args:
        runtime: ``cuda.bindings.runtime``, each of whose functions returns an error code and its
            results; None imports it.

    Attributes:
        capability: Compute capability, as ``8.9``.

    Raises:
        EngineError: There is no device, or the driver does not work.
        MissingDependencyError: cuda-bindings is not installed.
    """

    def __init__(self, runtime: Any = None) -> None:
        runtime = runtime or _bindings("runtime", "running an engine on a GPU")
        self._runtime, self._call = runtime, _Calls(runtime, "cudaGetErrorString")
        try:
            properties = self._call("cudaGetDeviceProperties", self._call("cudaGetDevice"))
        except EngineError as error:
            raise EngineError(
                f"a TensorRT engine needs an NVIDIA GPU; {error}; run it on a machine with one, or "
                "build with --target onnx"
            ) from None
        self.capability = f"{properties.major}.{properties.minor}"
        self._stream = self._call("cudaStreamCreateWithFlags", _NON_BLOCKING)

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return int(self._stream)

    def allocate(self, size: int, what: str) -> int:
        """Address of ``size`` bytes.

        Args:
            size: Bytes.
            what: What they are for, for the message.

        Raises:
            EngineError: There is no room.
        """
        error, pointer = self._runtime.cudaMalloc(size)
        if int(error) == _OUT_OF_MEMORY:
            # The error stays until it is asked for, and would show up at a later call.
            self._runtime.cudaGetLastError()
            raise out_of_memory(size, what)
        self._call.check("cudaMalloc", error)
        return int(pointer)

    def free(self, pointer: int) -> None:
        """Free memory; at the end of the process there may be no driver any more."""
        self._runtime.cudaFree(pointer)

    def zero(self, pointer: int, size: int) -> None:
        """Set bytes to zero."""
        self._call("cudaMemsetAsync", pointer, 0, size, self._stream)

    def clear_box(self, corner: Corner, box: Box) -> None:
        """Set a box of bytes to zero."""
        extent = self._runtime.make_cudaExtent(*box)
        self._call("cudaMemset3DAsync", self._pitched(corner), 0, extent, self._stream)

    def copy_box(self, to: Corner, source: Corner, box: Box) -> None:
        """Copy a box of bytes on the device."""
        parameters = self._runtime.cudaMemcpy3DParms()
        parameters.dstPtr, parameters.srcPtr = self._pitched(to), self._pitched(source)
        parameters.extent = self._runtime.make_cudaExtent(*box)
        parameters.kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._call("cudaMemcpy3DAsync", parameters, self._stream)

    def buffer(self, size: int) -> Buffer:
        """Memory of ``size`` bytes for what moves between host and device.

        Raises:
            EngineError: There is no room.
        """
        return Buffer(self, size)

    def synchronize(self) -> None:
        """Return when all work is done.

        Raises:
            EngineError: Some of it failed.
        """
        self._call("cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph of what ``work`` puts on the stream; calling it launches the graph.

        Raises:
            EngineError: The work cannot be captured.
        """
        # Other threads may use the GPU for something else meanwhile.
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._call("cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        finally:
            # Ends the capture also when the work failed, else the stream stays unusable.
            error, graph = self._runtime.cudaStreamEndCapture(self._stream)
        if int(error) != 0:
            raise EngineError(f"no CUDA graph: cudaStreamEndCapture failed with {int(error)}")
        executable = self._call("cudaGraphInstantiate", graph, 0)
        self._call("cudaGraphDestroy", graph)

        def launch() -> None:
            self._call("cudaGraphLaunch", executable, self._stream)

        weakref.finalize(launch, self._runtime.cudaGraphExecDestroy, executable).atexit = False
        return launch

    def _pitched(self, corner: Corner) -> Any:
        pointer, pitch, rows = corner
        return self._runtime.make_cudaPitchedPtr(pointer, pitch, pitch, rows)


class Buffer:
    """Device memory of a fixed address, with page-locked memory on the host, which copies fast.

    Args:
        device: The device.
        size: Bytes.

    Attributes:
        address: Where it is, aligned to 256 bytes.
        size: Bytes.
    """

    def __init__(self, device: CudaDevice, size: int) -> None:
        self.size = size
        self._device = device
        self._kinds = device._runtime.cudaMemcpyKind
        self.address = device.allocate(size, "inputs and outputs")
        weakref.finalize(self, device.free, self.address).atexit = False

    @functools.cached_property
    def _host(self) -> npt.NDArray[np.uint8]:
        """Made at the first copy: TensorRT's working memory has none."""
        host = int(self._device._call("cudaMallocHost", self.size))
        weakref.finalize(self, self._device._runtime.cudaFreeHost, host).atexit = False
        return np.ctypeslib.as_array((ctypes.c_uint8 * self.size).from_address(host))

    def write(self, array: npt.NDArray[Any]) -> None:
        """Copy a C-contiguous array from the host, in the order of the stream."""
        flat = array.reshape(-1).view(np.uint8)
        self._host[: flat.size] = flat
        kind = self._kinds.cudaMemcpyHostToDevice
        self._copy(self.address, self._host.ctypes.data, flat.size, kind)

    def read(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Copy to the host: a new array, complete when this returns."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        kind = self._kinds.cudaMemcpyDeviceToHost
        self._copy(self._host.ctypes.data, self.address, size, kind)
        self._device.synchronize()
        return self._host[:size].view(dtype).reshape(shape).copy()

    def _copy(self, to: int, source: int, size: int, kind: Any) -> None:
        self._device._call("cudaMemcpyAsync", to, source, size, kind, self._device._stream)


@dataclasses.dataclass(frozen=True)
class ContextDevice:
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

    function: Any
    threads: int
    shared_bytes: int


class KernelLibrary:
    """Loads and launches compiled kernels; the caller (TensorRT) has made its context current.

    Args:
        driver: ``cuda.bindings.driver``; None imports it.

    Raises:
        EngineError: There is no NVIDIA driver, or no device.
        MissingDependencyError: cuda-bindings is not installed.
    """

    def __init__(self, driver: Any = None) -> None:
        driver = driver or _bindings("driver", "the fused projection")
        self._driver, self._call = driver, _Calls(driver, "cuGetErrorString")
        try:
            self._call("cuInit", 0)
        # cuda-bindings looks for the driver's library at the first call.
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise EngineError(
                f"the NVIDIA driver cannot be loaded ({reason}); the fused projection runs on "
                "NVIDIA GPUs only"
            ) from None

    def device(self) -> ContextDevice:
        """The device of the current context.

        Raises:
            EngineError: No context is current in this thread.
        """
        context = int(self._call("cuCtxGetCurrent"))
        if not context:
            raise EngineError(
                "no CUDA context is current in this thread; make one (cudaSetDevice, "
                "torch.cuda.init) before the fused projection is loaded"
            )
        device, attributes = self._call("cuCtxGetDevice"), self._driver.CUdevice_attribute

        def attribute(name: str) -> int:
            key = getattr(attributes, f"CU_DEVICE_ATTRIBUTE_{name}")
            return int(self._call("cuDeviceGetAttribute", key, device))

        major = attribute("COMPUTE_CAPABILITY_MAJOR")
        return ContextDevice(
            context=context,
            compute_capability=10 * major + attribute("COMPUTE_CAPABILITY_MINOR"),
            multiprocessors=attribute("MULTIPROCESSOR_COUNT"),
            shared_bytes=attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN"),
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
        module = self._call("cuModuleLoadData", content)
        function = self._call("cuModuleGetFunction", module, symbol.encode())
        if shared_bytes > _DEFAULT_SHARED_BYTES:
            attributes = self._driver.CUfunction_attribute
            most = attributes.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call("cuFuncSetAttribute", function, most, shared_bytes)
        return Kernel(function, threads, shared_bytes)

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
        pointer, integer = ctypes.c_void_p, ctypes.c_int32
        types = (*len(pointers) * (pointer,), *len(integers) * (integer,), pointer, pointer)
        values = (*pointers, *integers, 0, 0)
        blocks, threads = (*grid, 1), (kernel.threads, 1, 1)
        where = (kernel.shared_bytes, stream)
        self._call("cuLaunchKernel", kernel.function, *blocks, *threads, *where, (values, types), 0)


def gpu_capabilities() -> tuple[str, ...]:
    """Compute capability of each CUDA device here, as ``8.9``.

    Empty where there is no device, no driver or no cuda-bindings; it never raises.
    """
    try:
        call = _Calls(_bindings("runtime", "looking for GPUs"), "cudaGetErrorString")
        keys = call.module.cudaDeviceAttr
        parts = (keys.cudaDevAttrComputeCapabilityMajor, keys.cudaDevAttrComputeCapabilityMinor)
        return tuple(
            ".".join(str(call("cudaDeviceGetAttribute", part, index)) for part in parts)
            for index in range(call("cudaGetDeviceCount"))
        )
    # A library that is broken or too old raises what it likes; without it there is no GPU to use.
    except Exception:
        return ()


def out_of_memory(size: int, what: str) -> EngineError:
    """The error for a device that has no ``size`` bytes left for ``what``."""
    return EngineError(
        f"the GPU has no {size / 2**30:.2f} GiB left for {what}; give a smaller --batch-size, or "
        "free its memory"
    )
