"""Target ``onnx``: an engine for ONNX Runtime, cache form ``read_only`` (docs/engine.md)."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mobius
import onnx_ir as ir

from otter_export.checkpoint import Checkpoint
from otter_export.converters.engine_files import (
    builder,
    channel_widths,
    copy_tokenizer,
    describe_files,
    source_of,
    token_ids,
)
from otter_export.engine_io import TensorSpec
from otter_export.errors import UnsupportedError
from otter_export.graph.base import base_graph
from otter_export.graph.emit import static_shape
from otter_export.graph.pipeline import (
    PRECISIONS,
    Lowering,
    hub_dtype,
    onnxruntime_passes,
    run_passes,
)
from otter_export.graph.widen import widen
from otter_export.manifest import EngineManifest
from otter_export.targets import (
    Availability,
    BuildPlan,
    BuildRequest,
    Progress,
    max_sequence_length,
    option,
)

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
CACHE_FORM = "read_only"
#: Tensors below this size stay inside the protobuf.
_EXTERNAL_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class OnnxOptions:
    """What only this target knows.

    Args:
        execution_provider: ``cpu`` or ``cuda``: where the engine is meant to run.
    """

    execution_provider: str = option("cpu", "Execution provider: cpu or cuda.", flag="--ep")


@dataclasses.dataclass(frozen=True)
class OnnxTarget:
    """ONNX Runtime on CPU or CUDA; fp32, fp16, int8 and int4 weights."""

    name: str = "onnx"
    summary: str = "ONNX Runtime on CPU or CUDA; fp32, fp16, int8 and int4 weights"
    precisions: tuple[str, ...] = PRECISIONS["cpu"]
    options: type[OnnxOptions] = OnnxOptions

    def availability(self) -> tuple[Availability, ...]:
        """Whoever can import this file can build."""
        return (Availability("", True, mobius.__version__, False, self.summary),)

    def plan(self, checkpoint: Checkpoint, request: BuildRequest) -> BuildPlan:
        """Build the graph, lower it, and leave the weights to be streamed by ``write``."""
        length = max_sequence_length(checkpoint, request)
        model = lowered_graph(checkpoint, request)
        inputs, outputs = tensor_specs(model.graph.inputs), tensor_specs(model.graph.outputs)
        counts = collections.Counter(node.op_type for node in model.graph)

        def write(directory: Path, progress: Progress | None) -> EngineManifest:
            names = copy_tokenizer(checkpoint, directory)
            save_model(model, directory, progress)
            names = [MODEL_FILE, DATA_FILE, *names]
            return _manifest(checkpoint, request, length, (inputs, outputs), directory, names)

        return BuildPlan(
            weights=weight_rows(model),
            inputs=inputs,
            outputs=outputs,
            details={"nodes": sum(counts.values()), "ops": dict(counts.most_common())},
            write=write,
        )


TARGET = OnnxTarget()


def lowered_graph(
    checkpoint: Checkpoint,
    request: BuildRequest,
    *,
    widened: bool = True,
    after_each: Callable[[str, ir.Model], None] | None = None,
) -> ir.Model:
    """The engine's graph; ``widened=False`` gives the base alone, lowered by the same passes.

    Raises:
        UnsupportedError: The precision does not exist for this execution provider.
    """
    provider = request.options_as(OnnxOptions).execution_provider
    accepted = PRECISIONS.get(provider)
    if accepted is None:
        raise UnsupportedError(f"--ep {provider}: target onnx knows {', '.join(PRECISIONS)}")
    if request.precision not in accepted:
        raise UnsupportedError(
            f"--precision {request.precision} is not available for target onnx on "
            f"{provider}; available: {', '.join(accepted)}"
        )
    lowering = Lowering(request.precision, provider)
    model = base_graph(checkpoint.base, hub_dtype(lowering))
    if widened:
        widen(model, checkpoint)
    return run_passes(model, onnxruntime_passes(checkpoint.base, lowering), after_each)


def save_model(model: ir.Model, directory: Path, progress: Progress | None = None) -> None:
    """Write ``model.onnx`` and stream its weights into ``model.onnx.data``, one at a time."""

    def report(tensor: ir.TensorProtocol, _: Any) -> None:
        if progress is not None:
            progress(tensor.nbytes)

    ir.save(
        model,
        directory / MODEL_FILE,
        external_data=DATA_FILE,
        size_threshold_bytes=_EXTERNAL_BYTES,
        callback=report,
        max_workers=1,
    )


def _manifest(
    checkpoint: Checkpoint,
    request: BuildRequest,
    length: int,
    io: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]],
    directory: Path,
    names: list[str],
) -> EngineManifest:
    bos, eos = token_ids(checkpoint)
    return EngineManifest(
        target=TARGET.name,
        precision=request.precision,
        execution_provider=request.options_as(OnnxOptions).execution_provider,
        cache_form=CACHE_FORM,
        model_file=MODEL_FILE,
        base=dataclasses.asdict(checkpoint.base.dimensions),
        channel=channel_widths(checkpoint),
        signals=checkpoint.config.signals,
        max_sequence_length=length,
        bos_token_id=bos,
        eos_token_ids=eos,
        inputs=io[0],
        outputs=io[1],
        files=describe_files(directory, names),
        builder=builder(mobius_onnx=mobius.__version__, onnx_ir=ir.__version__),
        source=source_of(checkpoint),
    )


def tensor_specs(values: Any) -> tuple[TensorSpec, ...]:
    """The inputs or outputs of a graph, as ``engine.json`` has them."""
    return tuple(
        TensorSpec(
            str(v.name),
            str(v.dtype.numpy()) if v.dtype is not None else "?",
            tuple(d if isinstance(d, int) else _dimension(d) for d in (v.shape or ())),
        )
        for v in values
    )


def _dimension(dimension: ir.SymbolicDim) -> str:
    """Mobius's dimension names, in this format's words."""
    names = {"sequence_len": "step", "past_sequence_len": "past"}
    return names.get(str(dimension.value), str(dimension.value))


def weight_rows(model: ir.Model) -> tuple[tuple[str, str, tuple[int, ...], int], ...]:
    """``(name, dtype, shape, bytes)`` of every initializer."""
    rows = []
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None:
            shape = static_shape(tensor)
            rows.append((str(name), tensor.dtype.name.lower(), shape, tensor.nbytes))
    return tuple(rows)
