"""TensorRT as an `Executor`: profiles, bindings, contexts and CUDA graphs.

A context runs one profile. Each CUDA graph has a context of its own, since a graph is bound to the
state of the context that it was captured from; all contexts share one block of working memory, for
they run one after another on one stream.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from otter_export import engine_io
from otter_export.cuda import Buffer, CudaDevice
from otter_export.errors import EngineError
from otter_export.manifest import EngineManifest
from otter_export.runtime.engine import FloatArray
from otter_export.runtime.executor import Blocks, RowRule, StepInputs, cache_blocks
from otter_export.runtime.executors import tensorrt_llm
from otter_export.runtime.executors.tensorrt_library import (
    LoadedPlan,
    check_capability,
    import_library,
    load_plan,
)
from otter_export.runtime.memory.cuda import cuda_memory
from otter_export.runtime.recent import Recent
from otter_export.runtime.step_engine import StepEngine

#: The graph that TensorRT was given; ``build --keep-onnx`` leaves it in the engine.
GRAPH_FILE = "model.onnx"
#: Most CUDA graphs; each holds a context and its nodes.
MAX_GRAPHS = 32
#: Steps of a shape that run without a graph before one is captured: capturing costs several steps.
PLAIN_STEPS = 2
#: TensorRT's working memory must be aligned to this.
_ALIGNMENT = 256
#: ``(batch, step, kept)``.
Sizes = tuple[int, int, int]


def load(
    directory: Path, manifest: EngineManifest, provider: str, threads: int | None
) -> StepEngine:
    """Load a TensorRT engine onto the first CUDA device, or its graph onto the CPU.

    Args:
        directory: The engine directory.
        manifest: Its ``engine.json``.
        provider: ``cuda``; ``cpu`` runs the graph that TensorRT was given in ONNX Runtime, if it
            was kept. That is a check of the engine's numbers without a GPU, and slow.
        threads: Threads on the CPU.

    Raises:
        EngineError: Version, GPU, plan or manifest do not fit; the message says which.
        MissingDependencyError: TensorRT, or a library for the GPU's memory, is not installed.
        UnsupportedError: The engine is of TensorRT-LLM.
    """
    if manifest.built_for.builder == tensorrt_llm.BUILDER:
        tensorrt_llm.load(directory, manifest, provider, threads)
    if provider == "cpu":
        return _load_graph(directory, manifest, threads)
    trt = import_library(manifest)
    device = CudaDevice()
    check_capability(manifest, device.capability)
    plan = load_plan(directory, manifest, trt)
    return StepEngine(directory, manifest, TensorRTExecutor(manifest, plan, device))


def _load_graph(directory: Path, manifest: EngineManifest, threads: int | None) -> StepEngine:
    """The engine's ONNX graph in ONNX Runtime."""
    model = directory / GRAPH_FILE
    if not model.is_file():
        raise EngineError(
            f"{directory} is a TensorRT engine, which needs an NVIDIA GPU; to check its graph on "
            "the CPU, build it with --keep-onnx, and for serving there, with --target onnx"
        )
    from otter_export.runtime.executors.onnxruntime import load_kept_graph

    return load_kept_graph(directory, manifest, model, threads)


class TensorRTExecutor:
    """Runs steps of a TensorRT engine.

    Args:
        manifest: The engine's.
        plan: The deserialised engine.
        device: Where it runs.
        cuda_graphs: Whether steps of decoding are captured; TensorRT-RTX does it by itself.
    """

    cache_form = engine_io.IN_PLACE
    row_rule = RowRule(pairs=False, even_steps=True)  # fewer shapes to capture
    chains_alike = False

    def __init__(
        self,
        manifest: EngineManifest,
        plan: LoadedPlan,
        device: CudaDevice,
        *,
        cuda_graphs: bool = True,
    ) -> None:
        self._io = manifest.io
        self._limits = manifest.built_for.limits
        self._plan = plan
        self._device = device
        self._profiles = read_profiles(plan.engine)
        self._native_graphs = hasattr(plan.trt, "CudaGraphStrategy")
        self._captures = cuda_graphs and not self._native_graphs
        self._memory = cuda_memory(device, self._forget)
        # The size may be 0, which no allocator likes.
        size = max(int(plan.engine.device_memory_size_v2), _ALIGNMENT)
        self._working = device.buffer(size)
        self._buffers: dict[str, Buffer] = {}
        self._contexts: dict[int, Any] = {}
        self._steps: Recent[tuple[int, ...], _GraphStep] = Recent(MAX_GRAPHS)

    @property
    def max_batch_size(self) -> int:
        """As the engine was built."""
        most = max(profile.high[0] for profile in self._profiles)
        return min(self._limits.max_batch_size or most, most)

    def accepts(self, batch: int, step: int, kept: int) -> bool:
        """Whether a profile runs the shape; see `Executor.accepts`."""
        return choose_profile(self._profiles, (batch, step, kept)) is not None

    def slots(self, needed: int, held: int = 0) -> int:
        """The engine's capacity, whatever is needed."""
        return self._limits.capacity or held

    def blocks(self, places: int, slots: int, *, zeroed: bool = True) -> Blocks:
        """Memory for a cache; see `Executor.blocks`."""
        return cache_blocks(self._memory, self._io, places, slots, zeroed=zeroed)

    def run(
        self, blocks: Blocks, inputs: StepInputs, rows: Blocks | None = None
    ) -> Mapping[str, FloatArray]:
        """Run the model; see `Executor.run`."""
        batch, step, kept = inputs.shape
        profile = choose_profile(self._profiles, inputs.shape)
        if profile is None:
            raise EngineError(
                f"no optimisation profile takes {batch} sequences of {step} tokens with {kept} "
                "rows of logits; build the engine with larger limits"
            )
        shapes = {name: self._io.output_shape(name, batch, kept) for name in self._io.output_names}
        for name, array in inputs.arrays.items():
            self._buffer(name, array.nbytes).write(array)
        for name, shape in shapes.items():
            self._buffer(name, 4 * math.prod(shape))
        if self._captures and step <= (self._limits.max_candidates or 1):
            key = (*(block.address(0) for block in blocks), *inputs.shape)
            self._steps.get(key, _GraphStep).run(
                lambda: self._enqueue(self._context(profile), blocks, inputs),
                lambda: self._capture(profile, blocks, inputs),
            )
        else:
            self._enqueue(self._context(profile), blocks, inputs)
        outputs = {n: self._buffers[n].read(shape, np.float32) for n, shape in shapes.items()}
        self._device.synchronize()
        return outputs

    def _enqueue(self, context: Any, blocks: Blocks, inputs: StepInputs) -> None:
        """Bind all tensors and put one run on the stream."""
        for name, array in inputs.arrays.items():
            self._check(context.set_input_shape(name, array.shape), f"the shape of {name}")
        for name, buffer in self._buffers.items():
            self._check(context.set_tensor_address(name, buffer.address), f"the address of {name}")
        self._bind_caches(context, blocks, inputs.shape[0])
        self._check(context.execute_async_v3(self._device.stream), "the step")

    def _bind_caches(self, context: Any, blocks: Blocks, batch: int) -> None:
        """Bind past and present of every slice to one address."""
        for cache, block in zip(self._io.caches, blocks, strict=True):
            _, _, heads, slots, size = block.shape
            pairs = zip(cache.pasts(), cache.presents(), strict=True)
            for index, (past, present) in enumerate(pairs):
                address = block.address(index)
                shape = (batch, heads, slots, size)
                self._check(context.set_input_shape(past, shape), f"the shape of {past}")
                for name in (past, present):
                    self._check(context.set_tensor_address(name, address), f"address of {name}")

    def _context(self, profile: Profile) -> Any:
        """The context of a profile for runs without a graph."""
        if profile.index not in self._contexts:
            self._contexts[profile.index] = self._new_context(profile)
        return self._contexts[profile.index]

    def _new_context(self, profile: Profile, *, retried: bool = False) -> Any:
        trt, engine = self._plan.trt, self._plan.engine
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        if self._native_graphs:
            config = engine.create_runtime_config()
            config.set_execution_context_allocation_strategy(strategy)
            config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = engine.create_execution_context(config)
        else:
            context = engine.create_execution_context(strategy)
        if context is None and not retried:
            # What is only kept for later may be enough.
            self._memory.clear()
            return self._new_context(profile, retried=True)
        if context is None:
            raise EngineError(f"TensorRT makes no execution context: {self._plan.log.problem()}")
        context.set_device_memory(self._working.address, self._working.size)
        selected = context.set_optimization_profile_async(profile.index, self._device.stream)
        self._check(selected, f"optimisation profile {profile.index}")
        self._device.synchronize()
        return context

    def _capture(self, profile: Profile, blocks: Blocks, inputs: StepInputs) -> Callable[[], None]:
        """A CUDA graph of this step, on a context of its own, which it keeps."""
        context = self._new_context(profile)
        # The first run after a change of shapes sets the context up, which must not be captured.
        # It writes the rows that the step writes anyway.
        self._enqueue(context, blocks, inputs)
        self._device.synchronize()
        stream = self._device.stream
        launch = self._device.capture(
            lambda: self._check(context.execute_async_v3(stream), "the capture of a step")
        )

        def replay() -> None:
            _ = context  # the graph's kernels use its memory
            launch()

        return replay

    def _buffer(self, name: str, size: int) -> Buffer:
        """The buffer of an input or output, enlarged if need be; graphs hold its address."""
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            self._steps.forget(lambda _: True)
            self._buffers[name] = self._device.buffer(max(size, _ALIGNMENT))
        return self._buffers[name]

    def _forget(self, address: int) -> None:
        """Drop the graphs on memory that is given up."""
        self._steps.forget(lambda key: address in key[: len(self._io.caches)])

    def _check(self, succeeded: bool, what: str) -> None:
        if not succeeded:
            raise EngineError(f"TensorRT refuses {what}: {self._plan.log.problem()}")


class _GraphStep:
    """A shape: its first steps run plainly, the later ones by a graph, unless none can be made."""

    def __init__(self) -> None:
        self._uses = 0
        self._launch: Callable[[], None] | None = None
        self._possible = True

    def run(self, plainly: Callable[[], None], capture: Callable[[], Callable[[], None]]) -> None:
        """Run one step.

        Args:
            plainly: Runs it without a graph.
            capture: Makes a graph of it, which runs nothing.
        """
        self._uses += 1
        if self._launch is None and self._possible and self._uses > PLAIN_STEPS:
            try:
                self._launch = capture()
            except EngineError:
                self._possible = False
        if self._launch is None:
            plainly()
        else:
            self._launch()


@dataclasses.dataclass(frozen=True)
class Profile:
    """One profile: the least and the most of ``(batch, step, kept)``.

    Args:
        index: In the engine.
        low: The least sizes.
        high: The most.
    """

    index: int
    low: Sizes
    high: Sizes

    def accepts(self, sizes: Sizes) -> bool:
        """Whether it runs this shape."""
        return all(
            least <= size <= most
            for least, size, most in zip(self.low, sizes, self.high, strict=True)
        )


def read_profiles(engine: Any) -> tuple[Profile, ...]:
    """The profiles of an engine, those for the shortest steps first: they are tuned for them."""
    profiles = []
    for index in range(engine.num_optimization_profiles):
        ids = engine.get_tensor_profile_shape(engine_io.INPUT_IDS, index)
        kept = engine.get_tensor_profile_shape(engine_io.KEPT_ROWS, index)
        low, high = (
            (int(ids[i][0]), int(ids[i][1]), int(kept[i][1]))
            for i in (0, 2)  # least, best, most
        )
        profiles.append(Profile(index, low, high))
    return tuple(sorted(profiles, key=lambda profile: profile.high[1]))


def choose_profile(profiles: tuple[Profile, ...], sizes: Sizes) -> Profile | None:
    """The profile for a shape, or None if the engine does not run it."""
    return next((profile for profile in profiles if profile.accepts(sizes)), None)
