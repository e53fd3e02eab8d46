"""Target ``onnx``: an engine for ONNX Runtime (docs/engine.md)."""

from __future__ import annotations

import collections
import dataclasses
from pathlib import Path
from typing import Any

import mobius
import onnx_ir as ir

from otter_export.checkpoint import Checkpoint
from otter_export.converters.engine_directory import copy_tokenizer, engine_manifest
from otter_export.converters.external_data import MODEL_FILE, save_model
from otter_export.converters.target import (
    Availability,
    BuildPlan,
    BuildRequest,
    Progress,
    max_sequence_length,
    option,
)
from otter_export.engine_io import IN_PLACE, READ_ONLY, TensorSpec
from otter_export.graph.base import mends_of
from otter_export.graph.emit import static_shape
from otter_export.graph.pipeline import lower, onnxruntime
from otter_export.manifest import EngineManifest
from otter_export.precision import ONNX_RUNTIME

#: What builds graphs.
LIBRARIES = {"mobius_onnx": mobius.__version__, "onnx_ir": ir.__version__}
#: Where ONNX Runtime runs an engine to how its caches move through the graph.
CACHE_FORMS = {"cpu": IN_PLACE, "cuda": READ_ONLY}


@dataclasses.dataclass(frozen=True)
class OnnxOptions:
    """What only this target knows.

    Args:
        execution_provider: ``cpu`` or ``cuda``: where the engine is meant to run.
        link: Whether files whose weights need no cast are linked to the checkpoint's.
    """

    execution_provider: str = option("cpu", "Execution provider: cpu or cuda.", flag="--ep")
    link: bool = option(
        False, "Hard-link files whose weights need no cast, instead of copying.", flag="--link"
    )


@dataclasses.dataclass(frozen=True)
class OnnxTarget:
    """ONNX Runtime on CPU or CUDA; fp32, fp16, int8 and int4 weights."""

    name: str = "onnx"
    summary: str = "ONNX Runtime on CPU or CUDA; fp32, fp16, int8 and int4 weights"
    precisions: tuple[str, ...] = tuple(ONNX_RUNTIME["cpu"])
    options: type[OnnxOptions] = OnnxOptions

    def availability(self) -> tuple[Availability, ...]:
        """Whoever can import this file can build."""
        return (Availability("", True, mobius.__version__, False, self.summary),)

    def plan(self, checkpoint: Checkpoint, request: BuildRequest) -> BuildPlan:
        """Build the graph, lower it, and leave the weights to be streamed by ``write``."""
        length = max_sequence_length(checkpoint, request)
        options = request.options_as(OnnxOptions)
        provider = options.execution_provider
        model = lower(checkpoint, onnxruntime(provider), request.precision, positions=length)
        inputs, outputs = tensor_specs(model.graph.inputs), tensor_specs(model.graph.outputs)

        def write(directory: Path, progress: Progress | None) -> EngineManifest:
            names = copy_tokenizer(checkpoint, directory)
            files = save_model(model, directory, progress, link=options.link)
            return engine_manifest(
                checkpoint,
                directory,
                [*files, *names],
                libraries=LIBRARIES,
                target=self.name,
                precision=request.precision,
                execution_provider=provider,
                cache_form=CACHE_FORMS[provider],
                model_file=MODEL_FILE,
                max_sequence_length=length,
                inputs=inputs,
                outputs=outputs,
                mends=mends_of(model),
            )

        return BuildPlan(weight_rows(model), inputs, outputs, node_counts(model), write)


TARGET = OnnxTarget()


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


def node_counts(model: ir.Model) -> dict[str, Any]:
    """How many nodes a graph has, and of which ops."""
    counts = collections.Counter(node.op_type for node in model.graph)
    return {"nodes": sum(counts.values()), "ops": dict(counts.most_common())}


def weight_rows(model: ir.Model) -> tuple[tuple[str, str, tuple[int, ...], int], ...]:
    """``(name, dtype, shape, bytes)`` of every initializer."""
    rows = []
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None:
            shape = static_shape(tensor)
            rows.append((str(name), tensor.dtype.name.lower(), shape, tensor.nbytes))
    return tuple(rows)
