"""``in_place`` engines of tiny checkpoints, run by ONNX Runtime, beside their ``onnx`` engines."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx_ir as ir

from otter_export import load_engine
from otter_export.checkpoint import Checkpoint
from otter_export.converters.onnx import save_model
from otter_export.engine_io import TensorSpec
from otter_export.graph.base import base_graph
from otter_export.graph.pipeline import run_passes, tensorrt
from otter_export.graph.widen import widen
from otter_export.manifest import EngineManifest
from otter_export.precision import TENSORRT
from otter_export.runtime.engine import Engine
from otter_export.runtime.executors.onnxruntime import load_kept_graph
from otter_export.runtime.step_engine import StepEngine
from tests import built, tiny
from tests.runtime.fake_engine import ByteTokenizer

CAPACITY, MAX_STEP, MAX_CANDIDATES, MAX_BATCH = 96, 16, 8, 4
MAX_LENGTH = CAPACITY - MAX_STEP


@dataclasses.dataclass
class Pair:
    """Two engines of one checkpoint: the read-only form in fp32, and the in-place form."""

    checkpoint: Checkpoint
    onnx: Engine
    in_place: StepEngine
    model: Path


def make_pair(root: Path, family: str, seed: int, hub_dtype: str) -> Pair:
    """Build both.

    Args:
        root: Where.
        family: Of the tiny base.
        seed: Of the weights.
        hub_dtype: ``f32`` or ``f16``: of the in-place form's activations and caches.
    """
    signals = (tiny.REWARD, tiny.NEXT)
    checkpoint = built.random_checkpoint(root / "ck", family, signals=signals, seed=seed)
    directory = built.build(checkpoint, root / "onnx", max_sequence_length=MAX_LENGTH)
    onnx = load_engine(directory, threads=1)
    onnx.__dict__["tokenizer"] = ByteTokenizer()
    model = base_graph(checkpoint.base, hub_dtype)
    widen(model, checkpoint)
    run_passes(model, tensorrt(CAPACITY).passes(checkpoint.base, TENSORRT["fp16"]))
    manifest = in_place_manifest(onnx.manifest, model)
    (root / "trt").mkdir()
    save_model(model, root / "trt")
    engine = load_kept_graph(root / "trt", manifest, root / "trt" / "model.onnx", threads=1)
    engine.__dict__["tokenizer"] = ByteTokenizer()
    return Pair(checkpoint, onnx, engine, root / "trt" / "model.onnx")


def in_place_manifest(manifest: EngineManifest, model: ir.Model) -> EngineManifest:
    """The manifest of an ``onnx`` engine, changed into that of a ``trt`` engine of ``model``."""
    return dataclasses.replace(
        manifest,
        target="trt",
        execution_provider="cuda",
        cache_form="in_place",
        inputs=tuple(_spec(value) for value in model.graph.inputs),
        outputs=tuple(_spec(value) for value in model.graph.outputs),
        options={
            "max_batch_size": MAX_BATCH,
            "max_candidates": MAX_CANDIDATES,
            "max_step": MAX_STEP,
            "capacity": CAPACITY,
        },
    )


def _spec(value: ir.Value) -> TensorSpec:
    assert value.dtype is not None and value.shape is not None
    shape = tuple(d if isinstance(d, int) else str(d.value) for d in value.shape)
    return TensorSpec(str(value.name), str(value.dtype.numpy()), shape)
