"""The native engine: graph to ONNX file, ONNX file to plan, both checked, in one directory."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir

from otter_export.checkpoint import Checkpoint
from otter_export.converters.engine_directory import copy_tokenizer, engine_manifest
from otter_export.converters.external_data import DATA_FILE, MODEL_FILE, save_model
from otter_export.converters.onnx import LIBRARIES, node_counts, tensor_specs, weight_rows
from otter_export.converters.target import BuildPlan, BuildRequest, Progress
from otter_export.converters.tensorrt import process
from otter_export.converters.tensorrt.builders import NativeBuilder
from otter_export.converters.tensorrt.check import check_built
from otter_export.converters.tensorrt.job import Built, Job, Profile, profiles
from otter_export.converters.tensorrt.options import EngineShapes, TensorRTOptions, engine_shapes
from otter_export.engine_io import IN_PLACE
from otter_export.errors import MissingDependencyError
from otter_export.graph.base import mends_of
from otter_export.graph.functions import DOMAIN
from otter_export.graph.pipeline import lower, tensorrt
from otter_export.manifest import EngineManifest
from otter_export.precision import TENSORRT

#: Takes the share of some work that is done, 0 to 1.
Share = Callable[[float], None]
ENGINE_FILE = "rank0.engine"
PLUGIN_FOLDER = "plugins"
#: The op of the fused projection; each becomes one plugin layer.
_PLUGIN_OP = (DOMAIN, "OtterLinear")


def plan(
    builder: NativeBuilder,
    capabilities: tuple[str, ...],
    checkpoint: Checkpoint,
    request: BuildRequest,
) -> BuildPlan:
    """Build and lower the graph; weights are read when the plan is written.

    Args:
        builder: That is usable here.
        capabilities: Compute capabilities of the engine.
        checkpoint: What to build.
        request: With the options of target ``trt``.

    Raises:
        OtterError: The checkpoint cannot be built.
    """
    options, shapes = request.options_as(TensorRTOptions), engine_shapes(checkpoint, request)
    pipeline = tensorrt(shapes.capacity, plugin=options.plugin)
    longest = shapes.max_sequence_length
    model = lower(checkpoint, pipeline, request.precision, positions=longest)
    plugin_layers = sum((n.domain, n.op_type) == _PLUGIN_OP for n in model.graph)
    if plugin_layers and importlib.util.find_spec("triton") is None:
        raise MissingDependencyError("triton", "trt", "compiling the fused projection")
    build = _Build(
        builder,
        checkpoint,
        request.precision,
        options,
        shapes,
        capabilities,
        profiles(shapes),
        model,
        plugin_layers,
    )
    # The plan knows the specs and the weights; what writes it reads them there.
    planned = BuildPlan(
        weights=weight_rows(model),
        inputs=tensor_specs(model.graph.inputs),
        outputs=tensor_specs(model.graph.outputs),
        details={**node_counts(model), "builder": builder.name, **build.decided},
        write=lambda directory, progress: build.write(planned, directory, progress),
        # Written, built, and before that the kernels, as long as either.
        rounds=3 if plugin_layers else 2,
    )
    return planned


@dataclasses.dataclass(frozen=True)
class _Build:
    """A build that is planned, and how it is carried out."""

    builder: NativeBuilder
    checkpoint: Checkpoint
    precision: str
    options: TensorRTOptions
    shapes: EngineShapes
    capabilities: tuple[str, ...]
    profiles: tuple[Profile, ...]
    model: ir.Model
    plugin_layers: int

    @property
    def decided(self) -> dict[str, Any]:
        """What the plan and ``engine.json`` say of it."""
        return {
            "compute_capabilities": list(self.capabilities),
            "plugin_layers": self.plugin_layers,
            "profiles": [profile.to_json() for profile in self.profiles],
        }

    def write(
        self, planned: BuildPlan, directory: Path, progress: Progress | None
    ) -> EngineManifest:
        """Write the engine's files and return its manifest."""
        names = copy_tokenizer(self.checkpoint, directory)
        names += self._write_cubins(directory, _share(planned, progress))
        # Beside the engine, so that the weights are written once and on the same disk.
        with tempfile.TemporaryDirectory(prefix=".onnx-", dir=directory) as work:
            save_model(self.model, Path(work), progress)
            share = _share(planned, progress)
            built = process.build(self._job(Path(work), directory), share)
            if share is not None:
                share(1.0)  # the library's last steps report nothing
            check_built(self.model, built, self.plugin_layers)
            if self.options.keep_onnx:
                for name in (MODEL_FILE, DATA_FILE):
                    (Path(work) / name).rename(directory / name)
                    names.append(name)
        return self._manifest(planned, directory, [ENGINE_FILE, *names], built)

    def _write_cubins(self, directory: Path, share: Share | None) -> list[str]:
        """Compile the plugin's kernels for the engine's GPUs; returns their names."""
        if not self.plugin_layers:
            return []
        from otter_export.plugins.cubins import build_cubins, count_cubins

        folder = directory / PLUGIN_FOLDER
        dtypes = (TENSORRT[self.precision].dtype.name,)
        capabilities = [int(one.replace(".", "")) for one in self.capabilities]
        total, done = count_cubins(capabilities, dtypes), 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if share is not None:
                share(done / total)

        build_cubins(folder, capabilities, advance, dtypes)
        return sorted(str(p.relative_to(directory)) for p in folder.rglob("*") if p.is_file())

    def _job(self, work: Path, directory: Path) -> Job:
        # Unasked, the library's own default is left as it is: it may know later GPUs.
        asked = self.options.sm is not None and self.builder.capabilities
        return Job(
            library=self.builder.module,
            model=str(work / MODEL_FILE),
            engine=str(directory / ENGINE_FILE),
            profiles=self.profiles,
            compute_capabilities=self.capabilities if asked else (),
            cubins=str(directory / PLUGIN_FOLDER) if self.plugin_layers else None,
        )

    def _manifest(
        self, planned: BuildPlan, directory: Path, names: list[str], built: Built
    ) -> EngineManifest:
        decided = self.decided
        return engine_manifest(
            self.checkpoint,
            directory,
            names,
            libraries={**LIBRARIES, self.builder.module: built.version},
            target="trt",
            precision=self.precision,
            execution_provider="cuda",
            cache_form=IN_PLACE,
            model_file=ENGINE_FILE,
            max_sequence_length=self.shapes.max_sequence_length,
            inputs=planned.inputs,
            outputs=planned.outputs,
            mends=mends_of(self.model),
            options={
                "builder": self.builder.name,
                "builder_version": built.version,
                "compute_capabilities": decided["compute_capabilities"],
                "max_batch_size": self.shapes.max_batch_size,
                "max_candidates": self.shapes.max_candidates,
                "max_step": self.shapes.max_step,
                "capacity": self.shapes.capacity,
                "plugin_layers": self.plugin_layers,
                "layers": dict(built.layers),
                "profiles": decided["profiles"],
                "build_seconds": built.build_seconds,
                "build_peak_memory_bytes": built.peak_memory_bytes,
            },
        )


def _share(planned: BuildPlan, progress: Progress | None) -> Share | None:
    """Shares of some work as bytes of all weights: one of the plan's rounds."""
    if progress is None:
        return None
    report, total, done = progress, planned.total_bytes, 0

    def advance(share: float) -> None:
        nonlocal done
        reached = int(share * total)
        report(max(0, reached - done))
        done = max(done, reached)

    return advance
