"""The native engine: graph to ONNX file, ONNX file to plan, both checked, in one directory."""

from __future__ import annotations

import collections
import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable
from pathlib import Path

import mobius
import onnx_ir as ir

from otter_export.checkpoint import Checkpoint
from otter_export.converters import tensorrt_process
from otter_export.converters.engine_files import (
    builder,
    channel_widths,
    copy_tokenizer,
    describe_files,
    source_of,
    token_ids,
)
from otter_export.converters.onnx import (
    DATA_FILE,
    MODEL_FILE,
    save_model,
    tensor_specs,
    weight_rows,
)
from otter_export.converters.tensorrt_check import check_built
from otter_export.converters.tensorrt_graph import tensorrt_graph
from otter_export.converters.tensorrt_job import Built, Job, profiles
from otter_export.converters.tensorrt_native_builder import NativeBuilder
from otter_export.converters.tensorrt_options import (
    EngineShapes,
    TensorRTOptions,
    engine_shapes,
)
from otter_export.errors import MissingDependencyError
from otter_export.graph.pipeline import TensorRtForm
from otter_export.manifest import EngineManifest
from otter_export.targets import BuildPlan, BuildRequest, Progress

#: Takes the share of some work that is done, 0 to 1.
Share = Callable[[float], None]
ENGINE_FILE = "rank0.engine"
PLUGIN_FOLDER = "plugins"
CACHE_FORM = "in_place"
#: The op of the fused projection; each becomes one plugin layer.
_PLUGIN_OP = ("com.otter", "OtterLinear")


def plan(native: NativeBuilder, checkpoint: Checkpoint, request: BuildRequest) -> BuildPlan:
    """Build and lower the graph; weights are read when the plan is written.

    Raises:
        OtterError: The checkpoint cannot be built.
    """
    task = _Task.of(native, checkpoint, request)
    counts = collections.Counter(node.op_type for node in task.model.graph)
    return BuildPlan(
        weights=weight_rows(task.model),
        inputs=tensor_specs(task.model.graph.inputs),
        outputs=tensor_specs(task.model.graph.outputs),
        details={
            "nodes": sum(counts.values()),
            "ops": dict(counts.most_common()),
            "builder": native.name,
            "compute_capabilities": list(task.capabilities),
            "plugin_layers": task.plugin_layers,
            "profiles": [profile.to_json() for profile in profiles(task.shapes)],
        },
        write=task.write,
        # Written, built, and before that the kernels, as long as either.
        rounds=3 if task.plugin_layers else 2,
    )


@dataclasses.dataclass(frozen=True)
class _Task:
    """A build that is planned, and how it is carried out."""

    native: NativeBuilder
    checkpoint: Checkpoint
    request: BuildRequest
    shapes: EngineShapes
    capabilities: tuple[str, ...]
    model: ir.Model

    @classmethod
    def of(cls, native: NativeBuilder, checkpoint: Checkpoint, request: BuildRequest) -> _Task:
        shapes = engine_shapes(checkpoint, request)
        plugin = request.options_as(TensorRTOptions).plugin
        form = TensorRtForm(shapes.capacity, request.precision, plugin)
        model = tensorrt_graph(checkpoint, form)
        capabilities = native.target_capabilities(request)
        task = cls(native, checkpoint, request, shapes, capabilities, model)
        if task.plugin_layers and importlib.util.find_spec("triton") is None:
            raise MissingDependencyError("triton", "trt", "compiling the fused projection")
        return task

    @property
    def plugin_layers(self) -> int:
        """Fused projections that the engine must have."""
        return sum((n.domain, n.op_type) == _PLUGIN_OP for n in self.model.graph)

    def write(self, directory: Path, progress: Progress | None) -> EngineManifest:
        """Write the engine's files and return its manifest."""
        names = copy_tokenizer(self.checkpoint, directory)
        kept = self.request.options_as(TensorRTOptions).keep_onnx
        names += self._write_cubins(directory, self._share(progress))
        # Beside the engine, so that the weights are written once and on the same disk.
        with tempfile.TemporaryDirectory(prefix=".onnx-", dir=directory) as work:
            save_model(self.model, Path(work), progress)
            share = self._share(progress)
            built = tensorrt_process.build(self._job(Path(work), directory), share)
            if share is not None:
                share(1.0)  # the library's last steps report nothing
            check_built(self.model, built, self.plugin_layers)
            if kept:
                for name in (MODEL_FILE, DATA_FILE):
                    (Path(work) / name).rename(directory / name)
                    names.append(name)
        return self._manifest(directory, [ENGINE_FILE, *names], built)

    def _write_cubins(self, directory: Path, share: Share | None) -> list[str]:
        """Compile the plugin's kernels for the engine's GPUs; returns their names."""
        if not self.plugin_layers:
            return []
        from otter_export.plugins.cubins import build_cubins, count_cubins

        folder = directory / PLUGIN_FOLDER
        dtypes = ("bfloat16" if self.request.precision == "bf16" else "float16",)
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
        asked = self.request.options_as(TensorRTOptions).sm is not None
        return Job(
            library=self.native.module,
            model=str(work / MODEL_FILE),
            engine=str(directory / ENGINE_FILE),
            profiles=profiles(self.shapes),
            # Unasked, the library's own default is left as it is: it may know later GPUs.
            compute_capabilities=self.capabilities if asked and self.native.capabilities else (),
            cubins=str(directory / PLUGIN_FOLDER) if self.plugin_layers else None,
        )

    def _share(self, progress: Progress | None) -> Share | None:
        """Shares of some work as bytes of all weights: one of the plan's rounds."""
        if progress is None:
            return None
        report, total = progress, sum(size for _, _, _, size in weight_rows(self.model))
        done = 0

        def advance(share: float) -> None:
            nonlocal done
            reached = int(share * total)
            report(max(0, reached - done))
            done = max(done, reached)

        return advance

    def _manifest(self, directory: Path, names: list[str], built: Built) -> EngineManifest:
        bos, eos = token_ids(self.checkpoint)
        return EngineManifest(
            target="trt",
            precision=self.request.precision,
            execution_provider="cuda",
            cache_form=CACHE_FORM,
            model_file=ENGINE_FILE,
            base=dataclasses.asdict(self.checkpoint.base.dimensions),
            channel=channel_widths(self.checkpoint),
            signals=self.checkpoint.config.signals,
            max_sequence_length=self.shapes.max_sequence_length,
            bos_token_id=bos,
            eos_token_ids=eos,
            inputs=tensor_specs(self.model.graph.inputs),
            outputs=tensor_specs(self.model.graph.outputs),
            files=describe_files(directory, names),
            builder=builder(
                mobius_onnx=mobius.__version__,
                onnx_ir=ir.__version__,
                **{self.native.module: built.version},
            ),
            source=source_of(self.checkpoint),
            options={
                "builder": self.native.name,
                "builder_version": built.version,
                "compute_capabilities": list(self.capabilities),
                "max_batch_size": self.shapes.max_batch_size,
                "max_candidates": self.shapes.max_candidates,
                "max_step": self.shapes.max_step,
                "capacity": self.shapes.capacity,
                "plugin_layers": self.plugin_layers,
                "layers": dict(built.layers),
                "profiles": [profile.to_json() for profile in profiles(self.shapes)],
                "build_seconds": built.build_seconds,
                "build_peak_memory_bytes": built.peak_memory_bytes,
            },
        )
