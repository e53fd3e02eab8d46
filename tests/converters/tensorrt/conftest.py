"""Engines of a tiny Llama, built once by TensorRT-RTX; all skip visibly where it is absent."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import onnx_ir as ir
import pytest

from otter_export.checkpoint import Checkpoint
from otter_export.converters.target import BuildRequest
from otter_export.converters.tensorrt.options import TensorRTOptions
from otter_export.converters.tensorrt.target import TARGET
from otter_export.manifest import EngineManifest
from otter_export.precision import TENSORRT
from tests import built, tiny

#: Small enough that a build takes seconds; a step of 24 makes a capacity of 88.
OPTIONS = TensorRTOptions(
    builder="tensorrt-rtx",
    max_batch_size=4,
    max_candidates=6,
    max_step=24,
    plugin=False,
    keep_onnx=True,
)
LENGTH = 64


@dataclasses.dataclass
class TinyEngine:
    """An engine directory that keeps its model.onnx."""

    directory: Path
    manifest: EngineManifest
    model: ir.Model


@pytest.fixture(scope="session")
def trt() -> object:
    """TensorRT-RTX."""
    return pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A random channel with a value and a q_value signal."""
    root = tmp_path_factory.mktemp("trt")
    return built.random_checkpoint(root / "ck", signals=(tiny.REWARD, tiny.NEXT))


@pytest.fixture(scope="session")
def engines(
    trt: object, checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, TinyEngine]:
    """An engine in every precision."""
    found = {}
    for precision in TENSORRT:
        directory = tmp_path_factory.mktemp("engine") / precision
        directory.mkdir()
        plan = TARGET.plan(checkpoint, BuildRequest(precision, LENGTH, OPTIONS))
        manifest = plan.write(directory, None)
        manifest.save(directory)
        loaded = EngineManifest.load(directory)
        found[precision] = TinyEngine(directory, loaded, ir.load(directory / "model.onnx"))
    return found
