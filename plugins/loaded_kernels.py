"""The compiled kernels of one engine, loaded on a device, and their launch."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Sequence

from otter_export.cuda import ContextDevice, Kernel, KernelLibrary
from otter_export.errors import EngineError
from otter_export.plugins.cubin_index import CubinIndex
from otter_export.plugins.tiles import Tile, Widths, choose_tile, grid


@dataclasses.dataclass(frozen=True)
class _Plan:
    """How a shape is launched: the kernel, its grid, and its integers but the last."""

    kernel: Kernel
    grid: tuple[int, int]
    sizes: tuple[int, ...]


class LoadedKernels:
    """The kernels of one type in one CUDA context.

    Args:
        library: Loads and launches them.
        device: The device of the current context.
        index: Compiled kernels.
        dtype: ``float16`` or ``bfloat16``.

    Raises:
        EngineError: There is no kernel for the device, or it cannot be loaded.
    """

    def __init__(
        self, library: KernelLibrary, device: ContextDevice, index: CubinIndex, dtype: str
    ) -> None:
        self._library = library
        self._device = device
        self._kernels: dict[bool, dict[Tile, Kernel]] = {True: {}, False: {}}
        for cubin in index.select(device.compute_capability, dtype):
            if cubin.shared_bytes <= device.shared_bytes:
                self._kernels[cubin.aligned][cubin.tile] = library.load(
                    index.read(cubin), cubin.symbol, 32 * cubin.tile.warps, cubin.shared_bytes
                )
        if not self._kernels[False]:
            raise EngineError(
                f"{index.directory} has no kernel for any alignment of {dtype}; build it again"
            )
        # The same few shapes come back in every layer and step.
        self._plan = functools.lru_cache(maxsize=4096)(self._new_plan)

    def launch(self, rows: int, widths: Widths, pointers: Sequence[int], stream: int) -> None:
        """Enqueue ``y = W x + b`` and ``y' = A x + B x' + b'``.

        Args:
            rows: Rows of x.
            widths: Widths of the projection.
            pointers: Device addresses of x, x', W, A, B, b, b', y, y'; 0 for b and b' if there is
                no bias.
            stream: Handle of the CUDA stream.

        Raises:
            EngineError: The driver refuses the launch.
        """
        if rows == 0:
            return
        aligned = widths.aligned and all(pointer % 16 == 0 for pointer in pointers)
        plan = self._plan(rows, widths, aligned)
        integers = (*plan.sizes, int(pointers[5] != 0))
        self._library.launch(plan.kernel, plan.grid, pointers, integers, stream)

    def _new_plan(self, rows: int, widths: Widths, aligned: bool) -> _Plan:
        kernels = self._kernels[aligned] or self._kernels[False]
        tile = choose_tile(rows, widths, self._device.multiprocessors, kernels)
        sizes = dataclasses.astuple(widths)
        # TensorRT's tensors are dense: rows are as far apart as they are wide.
        return _Plan(kernels[tile], grid(tile, rows, widths), (rows, *sizes, *sizes))


class KernelLoader:
    """Loads the kernels of one directory, once for each context and type; thread-safe.

    Args:
        index: The directory's index.
        library: Loads them; None makes one when the first kernel is loaded.
    """

    def __init__(self, index: CubinIndex, library: KernelLibrary | None = None) -> None:
        self._index = index
        self._library = library
        self._loaded: dict[tuple[int, str], LoadedKernels] = {}
        self._lock = threading.Lock()

    def load(self, dtype: str) -> LoadedKernels:
        """The kernels of a type in the current context.

        Raises:
            EngineError: There is no driver, no current context, or no kernel for its device.
        """
        with self._lock:
            self._library = self._library or KernelLibrary()
            device = self._library.device()
            key = (device.context, dtype)
            if key not in self._loaded:
                self._loaded[key] = LoadedKernels(self._library, device, self._index, dtype)
            return self._loaded[key]
