"""TensorRT as an `Executor`: bindings, contexts and CUDA graphs.

A context runs one profile. Each CUDA graph has a context of its own, since a graph is bound to the
state of the context that it was captured from; all contexts share one block of working memory, for
they run one after another on one stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from otter_export.errors import EngineError
from otter_export.manifest import EngineManifest
from otter_export.runtime.backends import in_place_contract as contract
from otter_export.runtime.backends.device import Buffer, Device
from otter_export.runtime.backends.executor import SlotBlock, StepInputs
from otter_export.runtime.backends.onnx_contract import cache_names
from otter_export.runtime.backends.recent import Recent
from otter_export.runtime.backends.tensorrt_library import LoadedPlan
from otter_export.runtime.backends.tensorrt_profiles import (
    Profile,
    choose_profile,
    read_profiles,
)
from otter_export.runtime.engine import FloatArray

#: Most CUDA graphs; each holds a context and its nodes.
MAX_GRAPHS = 32
#: Steps of a shape that run without a graph before one is captured: capturing costs several steps.
PLAIN_STEPS = 2
#: TensorRT's working memory must be aligned to this.
_ALIGNMENT = 256


class TensorRTExecutor:
    """Runs steps of a TensorRT engine.

    Args:
        manifest: The engine's.
        plan: The deserialised engine.
        device: Where it runs.
        cuda_graphs: Whether steps of decoding are captured; TensorRT-RTX does it by itself.
    """

    def __init__(
        self,
        manifest: EngineManifest,
        plan: LoadedPlan,
        device: Device,
        *,
        cuda_graphs: bool = True,
    ) -> None:
        self._manifest = manifest
        self._plan = plan
        self._device = device
        self._limits = contract.Limits.of(manifest)
        self._caches = contract.cache_specs(manifest)
        self._profiles = read_profiles(plan.engine)
        self._native_graphs = hasattr(plan.trt, "CudaGraphStrategy")
        self._captures = cuda_graphs and not self._native_graphs
        self._memory = device.memory(self._forget)
        # The size may be 0, which no allocator likes.
        size = max(int(plan.engine.device_memory_size_v2), _ALIGNMENT)
        self._working = device.buffer(size)
        self._buffers: dict[str, Buffer] = {}
        self._contexts: dict[int, Any] = {}
        self._steps: Recent[tuple[int, ...], _GraphStep] = Recent(MAX_GRAPHS)

    @property
    def max_batch_size(self) -> int:
        """As the engine was built."""
        return min(self._limits.max_batch_size, max(p.high[0] for p in self._profiles))

    def accepts(self, batch: int, step: int, kept: int) -> bool:
        """Whether a profile runs the shape; see `Executor.accepts`."""
        return choose_profile(self._profiles, (batch, step, kept)) is not None

    def slots(self, needed: int) -> int:
        """The engine's capacity, whatever is needed."""
        return self._limits.capacity

    def blocks(self, places: int, slots: int) -> tuple[SlotBlock, ...]:
        """New cache memory; see `Executor.blocks`."""
        layers, size = 2 * self._manifest.num_layers, int(self._manifest.base["head_dim"])
        return tuple(
            self._memory.slots((layers, places, cache.heads, slots, size), cache.dtype)
            for cache in self._caches
        )

    def run(self, blocks: tuple[SlotBlock, ...], inputs: StepInputs) -> Mapping[str, FloatArray]:
        """Run the model; see `Executor.run`."""
        profile = choose_profile(self._profiles, inputs.shape)
        if profile is None:
            batch, step, kept = inputs.shape
            raise EngineError(
                f"no optimisation profile takes {batch} sequences of {step} tokens with {kept} "
                "rows of logits; build the engine with larger limits"
            )
        batch, step, kept = inputs.shape
        shapes = {
            name: contract.output_shape(self._manifest, name, batch, kept)
            for name in contract.output_names(self._manifest)
        }
        for name, array in inputs.arrays().items():
            self._buffer(name, array.nbytes).write(array)
        for name, shape in shapes.items():
            self._buffer(name, 4 * math.prod(shape))
        if self._captures and step <= self._limits.max_candidates:
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

    def _enqueue(self, context: Any, blocks: tuple[SlotBlock, ...], inputs: StepInputs) -> None:
        """Bind all tensors and put one run on the stream."""
        for name, array in inputs.arrays().items():
            self._check(context.set_input_shape(name, array.shape), f"the shape of {name}")
        for name, buffer in self._buffers.items():
            self._check(context.set_tensor_address(name, buffer.address), f"the address of {name}")
        self._bind_caches(context, blocks, inputs.shape[0])
        self._check(context.execute_async_v3(self._device.stream), "the step")

    def _bind_caches(self, context: Any, blocks: tuple[SlotBlock, ...], batch: int) -> None:
        """Bind past and present of every slice to one address."""
        for cache, block in zip(self._caches, blocks, strict=True):
            _, _, heads, slots, size = block.shape
            names = (cache_names(p, self._manifest.num_layers) for p in (cache.past, cache.present))
            for index, (past, present) in enumerate(zip(*names, strict=True)):
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

    def _capture(
        self, profile: Profile, blocks: tuple[SlotBlock, ...], inputs: StepInputs
    ) -> Callable[[], None]:
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
        self._steps.forget(lambda key: address in key[: len(self._caches)])

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
