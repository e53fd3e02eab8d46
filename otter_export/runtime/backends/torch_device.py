"""`Device` through PyTorch; torch is imported when one is made."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from otter_export.errors import EngineError
from otter_export.runtime.backends.device import as_bytes, out_of_memory
from otter_export.runtime.backends.torch_slots import TorchMemory

if TYPE_CHECKING:
    import torch


class TorchBuffer:
    """`Buffer` as a torch tensor, and page-locked memory on the host, from which copies are fast.

    Args:
        size: Bytes.
        stream: Of the device.
    """

    def __init__(self, size: int, stream: torch.cuda.Stream) -> None:
        import torch

        self._torch = torch
        self.size = size
        self._stream = stream
        try:
            with torch.cuda.stream(stream):
                self._device = torch.empty(size, dtype=torch.uint8, device="cuda")
        except torch.OutOfMemoryError:
            raise out_of_memory(size, "inputs and outputs") from None

    @property
    def address(self) -> int:
        """Torch aligns to 512 bytes."""
        return int(self._device.data_ptr())

    @functools.cached_property
    def _host(self) -> torch.Tensor:
        """Made at the first copy: TensorRT's working memory has none."""
        return self._torch.empty(self.size, dtype=torch.uint8, pin_memory=True)

    def write(self, array: npt.NDArray[Any]) -> None:
        """Copy from the host; see `Buffer.write`."""
        flat = as_bytes(array)
        self._host[: flat.size].copy_(self._torch.from_numpy(flat))
        with self._torch.cuda.stream(self._stream):
            self._device[: flat.size].copy_(self._host[: flat.size], non_blocking=True)

    def read(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """Copy to the host; see `Buffer.read`."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        with self._torch.cuda.stream(self._stream):
            self._host[:size].copy_(self._device[:size], non_blocking=True)
        self._stream.synchronize()
        return self._host[:size].numpy().view(dtype).reshape(shape).copy()


class TorchDevice:
    """torch's current CUDA device.

    Raises:
        EngineError: torch finds none.
    """

    def __init__(self) -> None:
        import torch

        self._torch = torch
        if not torch.cuda.is_available():
            raise EngineError(
                "a TensorRT engine needs an NVIDIA GPU, and torch finds no CUDA device here; run "
                "it on a machine with one, or build with --target onnx"
            )
        major, minor = torch.cuda.get_device_capability()
        self.capability = f"{major}.{minor}"
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    @property
    def stream(self) -> int:
        """Handle of the stream."""
        return int(self._stream.cuda_stream)

    def memory(self, dropped: Callable[[int], None]) -> TorchMemory:
        """Memory for caches; see `Device.memory`."""
        return TorchMemory("cuda", dropped, self._stream)

    def buffer(self, size: int) -> TorchBuffer:
        """Memory of a fixed address; see `Device.buffer`."""
        return TorchBuffer(size, self._stream)

    def synchronize(self) -> None:
        """Wait for the stream; see `Device.synchronize`."""
        try:
            self._stream.synchronize()
        except RuntimeError as error:
            raise EngineError(f"the GPU reports: {str(error).splitlines()[0]}") from None

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """A CUDA graph; see `Device.capture`."""
        torch = self._torch
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads may use the GPU for something else meanwhile.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                work()
        except RuntimeError as error:
            raise EngineError(f"no CUDA graph: {str(error).splitlines()[0]}") from None

        def launch() -> None:
            with torch.cuda.stream(self._stream):
                graph.replay()

        return launch
