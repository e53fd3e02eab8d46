"""A TensorRT whose engines are ONNX files run by ONNX Runtime, at the addresses it is given (L4).

It has the part of the API that the backend uses, and is as strict as TensorRT: shapes outside the
profile, missing addresses and a cache that is not updated in place are refused. A captured step
keeps the shapes and addresses of its capture, as a CUDA graph does.
"""

from __future__ import annotations

import ctypes
import dataclasses
import enum
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from otter_export.engine_io import is_cache, present_of
from otter_export.errors import EngineError
from otter_export.manifest import EngineManifest
from tests.runtime.executors.graphs import MAX_BATCH, MAX_CANDIDATES, MAX_STEP, Pair

_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(int64)": np.int64,
    "tensor(bool)": np.bool_,
}
_NAMES = {"tensor(float)": "FLOAT", "tensor(float16)": "HALF"}
_NAMES |= {"tensor(int64)": "INT64", "tensor(bool)": "BOOL"}
Mode = enum.Enum("Mode", ["INPUT", "OUTPUT"])
Strategy = enum.Enum("Strategy", ["STATIC", "USER_MANAGED"])
#: Least and most of (batch, step, kept) of each profile.
Profiles = tuple[tuple[tuple[int, int, int], tuple[int, int, int]], ...]


class FakeLogger:
    """The base class of loggers."""


class FakeContext:
    """An execution context; counts its runs."""

    def __init__(self, engine: FakeTrtEngine) -> None:
        self.engine = engine
        self.profile = 0
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.memory: tuple[int, int] | None = None

    def set_device_memory(self, address: int, size: int) -> None:
        assert address and size >= self.engine.device_memory_size_v2
        self.memory = (address, size)

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.profile = index
        return 0 <= index < len(self.engine.profiles) and stream == FakeDevice.stream

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, high = self.engine.profiles[self.profile]
        if name == "input_ids" and not (
            low[0] <= shape[0] <= high[0] and low[1] <= shape[1] <= high[1]
        ):
            return False
        if name == "kept_rows" and not low[2] <= shape[1] <= high[2]:
            return False
        self.shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return name in self.engine.tensors

    def execute_async_v3(self, stream: int) -> bool:
        if self.engine.fails or self.memory is None or stream != FakeDevice.stream:
            return False
        if set(self.addresses) != set(self.engine.tensors):
            return False
        shapes, addresses = dict(self.shapes), dict(self.addresses)
        device = self.engine.device
        if device.recording is not None:
            if self.engine.refuses_capture:
                raise EngineError("no CUDA graph: operation not permitted")
            device.recording.append(lambda: self.engine.run(shapes, addresses))
        else:
            self.engine.plain_runs += 1
            self.engine.run(shapes, addresses)
        return True


class FakeConfig:
    """How TensorRT-RTX makes a context."""

    cuda_graph_strategy: Any = None
    strategy: Any = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.strategy = strategy


class FakeTrtEngine:
    """A deserialised engine."""

    device_memory_size_v2 = 1000

    def __init__(self, model: Path, profiles: Profiles, device: FakeDevice) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(str(model), options)
        self.inputs = {v.name: v for v in self.session.get_inputs()}
        self.tensors = {**self.inputs, **{v.name: v for v in self.session.get_outputs()}}
        self.profiles = profiles
        self.device = device
        self.contexts: list[FakeContext] = []
        self.configs: list[FakeConfig] = []
        self.plain_runs = 0
        self.fails = self.refuses_capture = self.out_of_memory = False

    @property
    def num_io_tensors(self) -> int:
        return len(self.tensors)

    @property
    def num_optimization_profiles(self) -> int:
        return len(self.profiles)

    def get_tensor_name(self, index: int) -> str:
        return list(self.tensors)[index]

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=_NAMES[self.tensors[name].type])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else -1 for d in self.tensors[name].shape)

    def get_tensor_mode(self, name: str) -> Any:
        return Mode.INPUT if name in self.inputs else Mode.OUTPUT

    def get_tensor_profile_shape(self, name: str, index: int) -> list[tuple[int, int]]:
        column = {"input_ids": 1, "kept_rows": 2}[name]
        low, high = self.profiles[index]
        return [(sizes[0], sizes[column]) for sizes in (low, high, high)]

    def create_runtime_config(self) -> FakeConfig:
        return FakeConfig()

    def create_execution_context(self, how: Any) -> FakeContext | None:
        if isinstance(how, FakeConfig):
            self.configs.append(how)
            how = how.strategy
        assert how is Strategy.USER_MANAGED
        if self.out_of_memory:
            return None
        self.contexts.append(FakeContext(self))
        return self.contexts[-1]

    def run(self, shapes: dict[str, tuple[int, ...]], addresses: dict[str, int]) -> None:
        """Run the graph on raw addresses."""
        batch, kept = shapes["kept_rows"]
        binding = self.session.io_binding()
        for name, value in self.tensors.items():
            dtype = _NUMPY[value.type]
            if name in self.inputs:
                binding.bind_input(name, "cpu", 0, dtype, shapes[name], addresses[name])
                continue
            if is_cache(name):
                past = next(p for p in self.inputs if is_cache(p) and present_of(p) == name)
                assert addresses[name] == addresses[past], "not in place"
                shape = shapes[past]
            else:
                shape = (batch, kept, *value.shape[2:])
            binding.bind_output(name, "cpu", 0, dtype, shape, addresses[name])
        self.session.run_with_iobinding(binding)


class FakeBuffer:
    def __init__(self, size: int) -> None:
        self.size = size
        self.bytes = np.zeros(size, np.uint8)
        self.address = int(self.bytes.ctypes.data)

    def write(self, array: npt.NDArray[Any]) -> None:
        self.bytes[: array.nbytes] = array.reshape(-1).view(np.uint8)

    def read(self, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self.bytes[:size].view(dtype).reshape(shape).copy()


class FakeDevice:
    """The host as a CUDA device."""

    capability = "8.9"
    stream = 7

    def __init__(self) -> None:
        self.recording: list[Callable[[], None]] | None = None
        self.launches = 0
        self.allocated: dict[int, npt.NDArray[np.uint8]] = {}

    def allocate(self, size: int, what: str) -> int:
        array = np.full(size, 0xAB, np.uint8)
        self.allocated[array.ctypes.data] = array
        return int(array.ctypes.data)

    def free(self, pointer: int) -> None:
        del self.allocated[pointer]

    def zero(self, pointer: int, size: int) -> None:
        bytes_at(pointer, size)[:] = 0

    def clear_box(self, corner: tuple[int, int, int], box: tuple[int, int, int]) -> None:
        for at in _rows(corner, box):
            bytes_at(at, box[0])[:] = 0

    def copy_box(
        self, to: tuple[int, int, int], source: tuple[int, int, int], box: tuple[int, int, int]
    ) -> None:
        for at, read in zip(_rows(to, box), _rows(source, box), strict=True):
            bytes_at(at, box[0])[:] = bytes_at(read, box[0])

    def buffer(self, size: int) -> FakeBuffer:
        return FakeBuffer(size)

    def synchronize(self) -> None:
        assert self.recording is None, "synchronising breaks a capture"

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recording = []
        try:
            work()
            recorded = self.recording
        finally:
            self.recording = None

        def launch() -> None:
            self.launches += 1
            for run in recorded:
                run()

        return launch


def _rows(corner: tuple[int, int, int], box: tuple[int, int, int]) -> list[int]:
    """Addresses of the rows of a box of bytes."""
    (pointer, pitch, plane), (_, height, depth) = corner, box
    return [pointer + (z * plane + y) * pitch for z in range(depth) for y in range(height)]


class FakeTensorRT:
    """The module; a plan is the path of an ONNX file in bytes."""

    __name__ = "tensorrt"
    __version__ = "10.15.1.29"
    ILogger = FakeLogger
    TensorIOMode = Mode
    ExecutionContextAllocationStrategy = Strategy

    def __init__(self, profiles: Profiles, device: FakeDevice | None = None) -> None:
        self.profiles = profiles
        self.device = FakeDevice() if device is None else device
        self.engine: FakeTrtEngine | None = None

    def Runtime(self, log: Any) -> Any:
        def deserialize_cuda_engine(content: Any) -> FakeTrtEngine | None:
            path = Path(bytes(content).decode(errors="replace"))
            if "\0" in str(path) or not path.is_file():
                for message in ("first: bad magic", "then: the rest"):
                    log.log(SimpleNamespace(name="ERROR"), message)
                return None
            self.engine = FakeTrtEngine(path, self.profiles, self.device)
            return self.engine

        return SimpleNamespace(deserialize_cuda_engine=deserialize_cuda_engine)


class FakeTensorRtRtx(FakeTensorRT):
    """The same of TensorRT-RTX, which captures by itself."""

    __name__ = "tensorrt_rtx"
    __version__ = "1.7.1.116"
    CudaGraphStrategy = enum.Enum("CudaGraphStrategy", ["DISABLED", "WHOLE_GRAPH_CAPTURE"])


#: Of decoding, then of prompts.
PROFILES = (
    ((1, 1, 1), (MAX_BATCH, MAX_STEP, 1)),
    ((1, 1, 1), (MAX_BATCH, MAX_CANDIDATES, MAX_CANDIDATES)),
)


def manifest_of(pair: Pair, **options: object) -> EngineManifest:
    manifest = pair.in_place.manifest
    built = {"builder": "tensorrt", "builder_version": "10.15.1", **manifest.options, **options}
    return dataclasses.replace(manifest, model_file="rank0.engine", options=built)


def bytes_at(address: int, size: int) -> npt.NDArray[np.uint8]:
    """Host memory as an array."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
