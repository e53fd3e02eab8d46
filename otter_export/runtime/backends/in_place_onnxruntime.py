"""ONNX Runtime as an `Executor`: runs the graph that TensorRT is given, on the CPU.

It is how the numerics of a ``trt`` engine are checked where there is no GPU; nobody should serve
with it, since its attention reads the whole capacity in every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from otter_export.engine_io import TensorSpec
from otter_export.errors import EngineError, UnsupportedError
from otter_export.manifest import EngineManifest
from otter_export.runtime.backends import in_place_contract as contract
from otter_export.runtime.backends.executor import StepInputs
from otter_export.runtime.backends.host_slots import HostSlots
from otter_export.runtime.backends.in_place import InPlaceEngine
from otter_export.runtime.backends.onnx_contract import cache_names
from otter_export.runtime.engine import FloatArray

_TYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(int64)": "int64",
    "tensor(bool)": "bool",
}


def load_onnx(
    directory: Path, manifest: EngineManifest, model: Path, threads: int | None = None
) -> InPlaceEngine:
    """An engine on the CPU from the ONNX file of a ``trt`` engine.

    Args:
        directory: The engine directory, for its tokenizer.
        manifest: Its ``engine.json``.
        model: The ONNX file that the engine was built from.
        threads: Threads of one step; None takes every core.

    Raises:
        EngineError: ONNX Runtime cannot load the model, or it does not match the manifest.
        UnsupportedError: Its caches are bfloat16, which numpy does not have.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    # DequantizeLinear and MatMul become one product; its activations shall stay as they are, as
    # they do in TensorRT, instead of being rounded to int8.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    try:
        session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    # ONNX Runtime's exceptions share no base class but Exception.
    except Exception as error:
        raise EngineError(f"ONNX Runtime cannot load {model}: {error}") from None
    inputs, outputs = (_specs(v) for v in (session.get_inputs(), session.get_outputs()))
    contract.check_tensors(manifest, inputs, outputs)
    return InPlaceEngine(directory, manifest, OnnxRuntimeExecutor(manifest, session))


class OnnxRuntimeExecutor:
    """Runs steps in ONNX Runtime; past and present are bound to the same numpy memory.

    Args:
        manifest: The engine's.
        session: The loaded model.
    """

    def __init__(self, manifest: EngineManifest, session: Any) -> None:
        self._manifest = manifest
        self._session = session
        self._limits = contract.Limits.of(manifest)
        self._caches = contract.cache_specs(manifest)
        if any(cache.dtype == "bfloat16" for cache in self._caches):
            raise UnsupportedError("bfloat16 caches cannot be run on the CPU; build with fp16")

    @property
    def max_batch_size(self) -> int:
        """As the engine was built."""
        return self._limits.max_batch_size

    def accepts(self, batch: int, step: int, kept: int) -> bool:
        """Whether an engine with these limits takes the shape; see `Executor.accepts`."""
        limits = self._limits
        return (
            batch <= limits.max_batch_size
            and step <= limits.max_step
            and kept <= limits.max_candidates
        )

    def slots(self, needed: int) -> int:
        """The graph's capacity, whatever is needed."""
        return self._limits.capacity

    def blocks(self, places: int, slots: int) -> tuple[HostSlots, ...]:
        """Zeroed numpy memory; see `Executor.blocks`."""
        layers, size = 2 * self._manifest.num_layers, int(self._manifest.base["head_dim"])
        return tuple(
            HostSlots((layers, places, cache.heads, slots, size), np.dtype(cache.dtype))
            for cache in self._caches
        )

    def run(self, blocks: tuple[HostSlots, ...], inputs: StepInputs) -> Mapping[str, FloatArray]:
        """Run the model; see `Executor.run`."""
        batch, _, kept = inputs.shape
        binding = self._session.io_binding()
        for name, array in inputs.arrays().items():
            binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        outputs: dict[str, FloatArray] = {}
        for name in contract.output_names(self._manifest):
            shape = contract.output_shape(self._manifest, name, batch, kept)
            out = outputs[name] = np.empty(shape, np.float32)
            binding.bind_output(name, "cpu", 0, out.dtype, out.shape, out.ctypes.data)
        for cache, block in zip(self._caches, blocks, strict=True):
            _bind_cache(binding, cache, block, batch, self._manifest.num_layers)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise EngineError(f"the model failed in ONNX Runtime: {error}") from None
        return outputs


def _bind_cache(
    binding: Any, cache: contract.CacheSpec, block: HostSlots, batch: int, layers: int
) -> None:
    """Bind the first ``batch`` places of every slice as past and as present."""
    shape = (batch, *block.shape[2:])
    dtype = block.array.dtype
    for prefix, bind in ((cache.past, binding.bind_input), (cache.present, binding.bind_output)):
        for index, name in enumerate(cache_names(prefix, layers)):
            bind(name, "cpu", 0, dtype, shape, block.address(index))


def _specs(values: Any) -> dict[str, TensorSpec]:
    return {v.name: TensorSpec(v.name, _TYPES.get(v.type, v.type), tuple(v.shape)) for v in values}
