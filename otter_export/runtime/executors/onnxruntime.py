"""ONNX Runtime as an `Executor`, for both cache forms.

An ``onnx`` engine for the CPU writes its caches in place, with as many slots as are needed; for
CUDA, and of an older release, its graph reads them, and its new rows come out apart. The graph that
TensorRT is given has caches of static capacity: running it here, on the CPU, is how the numerics of
a ``trt`` engine are checked where there is no GPU; nobody should serve so, since its attention
reads the whole capacity in every step.
"""

from __future__ import annotations

import contextlib
import functools
import io
import mmap
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from otter_export import engine_io
from otter_export.boundary import errors_as
from otter_export.cuda import CudaDevice
from otter_export.engine_io import TensorSpec
from otter_export.errors import EngineError, MissingDependencyError, UnsupportedError
from otter_export.manifest import EngineManifest
from otter_export.runtime.engine import FloatArray
from otter_export.runtime.executor import Blocks, RowRule, StepInputs, cache_blocks
from otter_export.runtime.memory.block import Memory
from otter_export.runtime.memory.cuda import cuda_memory
from otter_export.runtime.memory.host import KEEP, host_memory
from otter_export.runtime.recent import Recent
from otter_export.runtime.row_trial import try_chains, try_rows
from otter_export.runtime.step_engine import StepEngine

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
#: CUDA's default rounds the factors of a float32 product to tf32, which has 10 bits.
_PROVIDER_OPTIONS: Mapping[str, Mapping[str, str]] = {"cpu": {}, "cuda": {"use_tf32": "0"}}
#: Capacity is a multiple of this many slots, so that the graph sees few different shapes. It is
#: also a multiple of every vector's lanes, so that a token adds up the same numbers in the same
#: order whatever the capacity is.
SLOTS = 32
#: ONNX Runtime's names of element types.
_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}
#: Of the first step, and how much more for each byte of the engine: reading weights from a slow
#: disk, and a chunk of a prompt on a slow CPU.
_FIRST_STEP_SECONDS = 60.0
_BYTES_PER_SECOND = 20e6
#: Caches with new rows of one shape, whose tensors stay bound.
_BINDINGS = 16


def load(
    directory: Path, manifest: EngineManifest, provider: str, threads: int | None
) -> StepEngine:
    """Load an ``onnx`` engine.

    Raises:
        EngineError: ONNX Runtime cannot load the model, or it does not match the manifest.
        MissingDependencyError: The provider is not in the installed ONNX Runtime.
    """
    if provider not in PROVIDERS:
        raise EngineError(
            f"engine.json: execution_provider is {provider!r}; accepted: {', '.join(PROVIDERS)}"
        )
    if PROVIDERS[provider] not in ort.get_available_providers():
        raise MissingDependencyError("onnxruntime-gpu", "cuda", f"provider {provider!r}")
    manifest.require_form(engine_io.IN_PLACE, engine_io.READ_ONLY)
    model = directory / manifest.model_file
    session = open_session(model, provider, threads, data=linked_data(directory, manifest, model))
    device = CudaDevice() if provider == "cuda" else None
    return StepEngine(directory, manifest, OnnxRuntimeExecutor(manifest, session, provider, device))


def load_kept_graph(
    directory: Path, manifest: EngineManifest, model: Path, threads: int | None = None
) -> StepEngine:
    """The graph that a ``trt`` engine was built from, on the CPU.

    Args:
        directory: The engine directory, for its tokenizer.
        manifest: Its ``engine.json``.
        model: The ONNX file.
        threads: Threads of one step; None takes every core.

    Raises:
        EngineError: ONNX Runtime cannot load the model, or it does not match the manifest.
        UnsupportedError: Its caches are bfloat16, which numpy does not have.
    """
    manifest.require_form(engine_io.IN_PLACE)
    manifest.require_sizes()
    # DequantizeLinear and MatMul become one product; its activations shall stay as they are, as
    # they do in TensorRT, instead of being rounded to int8.
    entries = {"session.qdq_matmulnbits_accuracy_level": "1"}
    linked = linked_data(directory, manifest, model)
    session = open_session(model, "cpu", threads, entries, linked)
    return StepEngine(directory, manifest, OnnxRuntimeExecutor(manifest, session, "cpu"))


def open_session(
    model: Path | bytes,
    provider: str,
    threads: int | None = None,
    entries: Mapping[str, str] | None = None,
    data: Mapping[str, Path] | None = None,
    profile: Path | None = None,
) -> Any:
    """An ONNX Runtime session.

    Args:
        model: A file, or a serialized model.
        provider: Of `PROVIDERS`.
        threads: Threads of one run; None takes every core.
        entries: Session configuration.
        data: Files of external data, by the names that the model has for them, where ONNX Runtime
            would refuse to open them by itself; see `linked_data`.
        profile: Beginning of the path of a profile, which ``end_profiling`` of the session writes.

    Raises:
        EngineError: ONNX Runtime cannot load the model, or cannot start the provider.
    """
    if provider == "cuda":
        # The CUDA libraries of NVIDIA's pip packages, where ONNX Runtime does not look by itself.
        # It prints those that it misses, of which it may need none.
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    source = str(model) if isinstance(model, Path) else model
    what = model if isinstance(model, Path) else "the graph"
    with (
        errors_as(EngineError, f"ONNX Runtime cannot load {what}"),
        contextlib.ExitStack() as opened,
    ):
        if isinstance(model, Path):
            # ONNX Runtime says of every file that it cannot open that it does not exist.
            opened.enter_context(model.open("rb"))
        if data:
            maps = [opened.enter_context(_mapped(path)) for path in data.values()]
            options.add_external_initializers_from_files_in_memory(
                list(data), maps, [len(one) for one in maps]
            )
        chosen = (PROVIDERS[provider], _PROVIDER_OPTIONS[provider])
        session = ort.InferenceSession(source, options, providers=[chosen])
    # It only warns of a provider whose libraries are missing, and would run on the CPU.
    if PROVIDERS[provider] not in session.get_providers():
        raise EngineError(
            f"ONNX Runtime cannot start its provider {provider!r}: the driver, or a library of the "
            "CUDA and cuDNN that it was built for, is missing; install them with: pip install "
            "'onnxruntime-gpu[cuda,cudnn]'"
        )
    return session


def linked_data(
    directory: Path, manifest: EngineManifest, model: Path | None = None
) -> dict[str, Path]:
    """The engine's files, if ONNX Runtime does not open all of its external data by itself.

    It refuses data that a link leads out of the model's directory. A cache of downloads is made of
    such links, and what an engine's own ``engine.json`` lists is the engine's, wherever it lies.
    Where one file is given to ONNX Runtime, all have to be.

    Args:
        directory: The engine directory.
        manifest: Its ``engine.json``.
        model: The model file, if it is loaded from there: data may lie beside what it links to.

    Returns:
        Path of each by the name that a model in that directory has for it.
    """
    beside = directory if model is None else model.parent
    allowed = {beside.resolve(), *([] if model is None else [model.resolve().parent])}
    paths = [directory / file.path for file in manifest.files if file.size]
    files = {p.name: p.resolve() for p in paths if p.parent == beside and p != model}
    leads_out = any(
        path.is_symlink() and not allowed & set(files[path.name].parents)
        for path in paths
        if path.name in files
    )
    return files if leads_out else {}


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """A file's content, which is read when it is looked at."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


class OnnxRuntimeExecutor:
    """Runs steps in ONNX Runtime, with all tensors bound where they are.

    Args:
        manifest: The engine's.
        session: The loaded model.
        provider: Of `PROVIDERS`.
        device: Where caches are; None is the host.

    Raises:
        EngineError: The model does not match the manifest.
        UnsupportedError: Its caches are of a type that numpy does not have.
    """

    def __init__(
        self,
        manifest: EngineManifest,
        session: Any,
        provider: str,
        device: CudaDevice | None = None,
    ) -> None:
        io = self._io = manifest.io
        manifest.check_model(_specs(session.get_inputs()), _specs(session.get_outputs()))
        if "bfloat16" in [cache.dtype for cache in io.caches]:
            raise UnsupportedError("bfloat16 caches cannot be run on the CPU; build with fp16")
        self.cache_form = manifest.cache_form
        self._limits = manifest.built_for.limits
        self._most_slots = _rounded(manifest.max_sequence_length)
        self._session = session
        self._outputs = {name: io.output_shape(name, 1, 1)[2:] for name in io.output_names}
        self._provider = provider
        self._device = device
        self._memory: Memory = host_memory() if device is None else cuda_memory(device, keep=KEEP)
        size = sum(file.size for file in manifest.files)
        self._first_step_seconds: float | None = _FIRST_STEP_SECONDS + size / _BYTES_PER_SECOND
        self._bindings: Recent[tuple[int, ...], _Binding] = Recent(_BINDINGS)

    @functools.cached_property
    def row_rule(self) -> RowRule:
        """As tried on this model and processor; only on the CPU is anything promised.

        Raises:
            EngineError: The model fails.
        """
        if self._promises:
            return try_rows(self)
        return RowRule(pairs=False, even_steps=True)

    @functools.cached_property
    def chains_alike(self) -> bool:
        """As tried, like `row_rule`; see `Executor.chains_alike`.

        Raises:
            EngineError: The model fails.
        """
        return self._promises and self.cache_form == engine_io.IN_PLACE and try_chains(self)

    @property
    def _promises(self) -> bool:
        """Whether rows shall be alike: on the CPU, but for a graph that was made for TensorRT."""
        return self._device is None and self._limits.capacity is None

    @property
    def max_batch_size(self) -> int:
        """As the engine was built; any, if it was built for none."""
        return self._limits.max_batch_size or sys.maxsize

    def accepts(self, batch: int, step: int, kept: int) -> bool:
        """Whether an engine with these limits takes the shape; see `Executor.accepts`."""
        limits = self._limits
        return (
            batch <= self.max_batch_size
            and step <= (limits.max_step or sys.maxsize)
            and kept <= (limits.max_candidates or sys.maxsize)
        )

    def slots(self, needed: int, held: int = 0) -> int:
        """A multiple of `SLOTS`, an eighth more than before; or the graph's capacity.

        Attention reads the whole capacity, so doubling it would cost more than it saves. A step in
        place needs room for all its rows, also behind the longest sequence.
        """
        if self._limits.capacity is not None:
            return self._limits.capacity
        return max(_rounded(needed), min(_rounded(held + held // 8), self._most_slots))

    def blocks(self, places: int, slots: int, *, zeroed: bool = True) -> Blocks:
        """Memory for a cache, or for new rows; see `Executor.blocks`."""
        return cache_blocks(self._memory, self._io, places, slots, zeroed=zeroed)

    def run(
        self, blocks: Blocks, inputs: StepInputs, rows: Blocks | None = None
    ) -> Mapping[str, FloatArray]:
        """Run the model; see `Executor.run`."""
        batch, _, kept = inputs.shape
        presents = blocks if rows is None else rows
        key = (blocks[0].address(0), presents[0].address(0))
        bound = self._bindings.get(key, lambda: _Binding(self._session, self._provider))
        for cache, past, present in zip(self._io.caches, blocks, presents, strict=True):
            bound.cache(cache, batch, past, present)
        binding = bound.binding
        for name, array in inputs.arrays.items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        outputs = {
            n: np.empty((batch, kept, *dims), np.float32) for n, dims in self._outputs.items()
        }
        for name, out in outputs.items():
            binding.bind_output(name, "cpu", 0, out.dtype, out.shape, out.ctypes.data)
        if self._device is not None:
            # ONNX Runtime's stream does not wait for the stream on which rows were moved.
            self._device.synchronize()
        with errors_as(EngineError, "the model failed in ONNX Runtime"):
            if self._first_step_seconds is None:
                self._session.run_with_iobinding(binding)
            else:
                run_limited(self._session, binding, self._first_step_seconds)
                self._first_step_seconds = None
            binding.synchronize_outputs()
        return outputs


def run_limited(session: Any, binding: Any, seconds: float) -> None:
    """Run a model that may be a stranger's, and never end: a Loop in it can go on for ever.

    Raises:
        EngineError: It took longer than that.
    """
    options = ort.RunOptions()
    timer = threading.Timer(seconds, setattr, (options, "terminate", True))
    timer.daemon = True
    timer.start()
    try:
        session.run_with_iobinding(binding, options)
    except Exception:
        if not options.terminate:
            raise
        raise EngineError(
            f"the model did not finish its first step in {seconds:.0f} seconds: the engine is "
            "damaged, or far too large for this machine"
        ) from None
    finally:
        timer.cancel()


class _Binding:
    """ONNX Runtime's binding of one cache and its new rows, which stay bound from step to step."""

    def __init__(self, session: Any, device: str) -> None:
        self.binding = session.io_binding()
        self._device = device
        self._bound: dict[str, object] = {}

    def cache(self, cache: engine_io.CacheSpec, batch: int, past: Any, present: Any) -> None:
        """Bind the first ``batch`` places of a cache, and the memory of its new rows."""
        if self._moved(cache.names.past, batch, past):
            self._bind(self.binding.bind_input, cache.pasts(), batch, past)
        if self._moved(cache.names.present, batch, present):
            self._bind(self.binding.bind_output, cache.presents(), batch, present)

    def _moved(self, name: str, batch: int, block: Any) -> bool:
        """Whether something else was bound under these names."""
        state = (batch, block.shape, block.address(0))
        moved = self._bound.get(name) != state
        self._bound[name] = state
        return moved

    def _bind(self, bind: Any, names: list[str], batch: int, block: Any) -> None:
        shape = (batch, *block.shape[2:])
        for index, name in enumerate(names):
            bind(name, self._device, 0, np.dtype(block.dtype), shape, block.address(index))


def _rounded(length: int) -> int:
    """Slots for ``length`` tokens."""
    return max(SLOTS, -(-length // SLOTS) * SLOTS)


def _specs(values: Any) -> dict[str, TensorSpec]:
    return {v.name: TensorSpec(v.name, _TYPES.get(v.type, v.type), tuple(v.shape)) for v in values}
