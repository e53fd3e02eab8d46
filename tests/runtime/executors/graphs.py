"""``in_place`` engines of tiny checkpoints, run by ONNX Runtime, beside their ``onnx`` engines."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import onnx_ir as ir

from otter_export import load_engine
from otter_export.checkpoint import Checkpoint
from otter_export.converters.engine_directory import copy_tokenizer, engine_manifest
from otter_export.converters.external_data import DATA_FILE, MODEL_FILE, save_model
from otter_export.converters.onnx import tensor_specs
from otter_export.engine_io import IN_PLACE
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


def tiny_pair(root: Path, family: str, seed: int, hub_dtype: str) -> Pair:
    """Build both for a tiny base.

    Args:
        root: Where.
        family: Of the tiny base.
        seed: Of the weights.
        hub_dtype: As `in_place_graph`.
    """
    signals = (tiny.REWARD, tiny.NEXT)
    checkpoint = built.random_checkpoint(root / "ck", family, signals=signals, seed=seed)
    directory = built.build(checkpoint, root / "onnx", max_sequence_length=MAX_LENGTH)
    onnx = load_engine(directory, threads=1)
    engine = in_place_engine(checkpoint, root / "trt", hub_dtype)
    for one in (onnx, engine):
        one.__dict__["tokenizer"] = ByteTokenizer()
    return Pair(checkpoint, onnx, engine, root / "trt" / MODEL_FILE)


def in_place_engine(checkpoint: Checkpoint, directory: Path, hub_dtype: str) -> StepEngine:
    """The engine of `in_place_graph`, which is written to ``directory``."""
    write_in_place(checkpoint, directory, in_place_graph(checkpoint, hub_dtype), "fp16")
    return load_in_place(directory)


def in_place_graph(checkpoint: Checkpoint, hub_dtype: str) -> ir.Model:
    """The graph of target ``trt``.

    Args:
        checkpoint: What to build.
        hub_dtype: ``f32`` or ``f16``: of activations and caches.
    """
    model = base_graph(checkpoint.base, hub_dtype)
    widen(model, checkpoint)
    run_passes(model, tensorrt(CAPACITY).passes(checkpoint.base, TENSORRT["fp16"]))
    return model


def write_in_place(
    checkpoint: Checkpoint, directory: Path, model: ir.Model, precision: str, **options: Any
) -> None:
    """An engine directory of target ``trt`` with its kept graph, and without a plan.

    Args:
        checkpoint: What it was built from.
        directory: Where; it is made.
        model: Of `in_place_graph`, or lowered for target ``trt``.
        precision: For ``engine.json``.
        options: Further options of ``engine.json``.
    """
    directory.mkdir(parents=True)
    names = [MODEL_FILE, DATA_FILE, *copy_tokenizer(checkpoint, directory)]
    save_model(model, directory)
    positions = checkpoint.base.dimensions.max_position_embeddings
    engine_manifest(
        checkpoint,
        directory,
        names,
        target="trt",
        precision=precision,
        execution_provider="cuda",
        cache_form=IN_PLACE,
        model_file=MODEL_FILE,
        max_sequence_length=min(MAX_LENGTH, positions),
        inputs=tensor_specs(model.graph.inputs),
        outputs=tensor_specs(model.graph.outputs),
        options={
            "max_batch_size": MAX_BATCH,
            "max_candidates": MAX_CANDIDATES,
            "max_step": MAX_STEP,
            "capacity": CAPACITY,
            **options,
        },
    ).save(directory)


def load_in_place(directory: Path) -> StepEngine:
    """What `write_in_place` wrote, run by ONNX Runtime on the CPU."""
    manifest = EngineManifest.load(directory)
    return load_kept_graph(directory, manifest, directory / MODEL_FILE, threads=1)
