"""L5: the emitted models in the real TensorRT-LLM, on a GPU; skipped where either is missing.

Never run so far: no machine of this project has had both. What stands for it elsewhere is said in
docs/tensorrt_llm.md.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from otter_export.checkpoint import Checkpoint
from otter_export.converters.target import Availability, BuildRequest
from otter_export.converters.tensorrt.builders import parsed
from otter_export.converters.tensorrt.options import TensorRTOptions
from otter_export.converters.tensorrt_llm import engine, pytorch
from tests import tiny
from tests.built import random_checkpoint, relative
from tests.converters.tensorrt_llm.build import reference

PROMPT = [5, 17, 99, 3, 42]
#: bf16 against float32, on a tiny random model.
TOLERANCE = 1e-1
#: Attention kernels want heads of 64.
BASE: dict[str, Any] = {"hidden_size": 256, "head_dim": 64, "intermediate_size": 512}
SHAPES: list[dict[str, Any]] = [{}, {"first_layer": 1, "attention": "shared"}, {"first_layer": 2}]


def _version() -> tuple[int, ...]:
    """Of the real package; empty where it is not installed."""
    try:
        return parsed(importlib.metadata.version("tensorrt_llm"))
    except importlib.metadata.PackageNotFoundError:
        return ()


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
engines = pytest.mark.skipif(
    not (1, 0) <= _version() < (1, 3), reason="needs tensorrt_llm 1.0 to 1.2.x"
)
backend = pytest.mark.skipif(_version() < (1, 3), reason="needs tensorrt_llm 1.3 or later")


def checkpoint_of(directory: Path, shape: dict[str, Any]) -> Checkpoint:
    options = {"signals": (tiny.REWARD,), "hidden_size": 64, **shape}
    return random_checkpoint(directory / "ck", base=BASE, **options)


@pytest.mark.gpu
@gpu
@engines
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("candidates", [1, 4])
def test_the_engine_is_built(candidates: int, shape: dict[str, Any], tmp_path: Path) -> None:
    options = TensorRTOptions(max_candidates=candidates, max_batch_size=2)
    version = importlib.metadata.version("tensorrt_llm")
    here = Availability("tensorrt-llm", True, version, True, "")
    plan = engine.plan(checkpoint_of(tmp_path, shape), BuildRequest("bf16", None, options), here)
    (tmp_path / "engine").mkdir()
    plan.write(tmp_path / "engine", None)
    assert (tmp_path / "engine/rank0.engine").stat().st_size > 0


@pytest.mark.gpu
@gpu
@backend
@pytest.mark.parametrize("shape", SHAPES)
def test_the_pytorch_backend_gives_the_references_outputs(
    shape: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = checkpoint_of(tmp_path, shape)
    directory = tmp_path / "model"
    directory.mkdir()
    pytorch.plan_directory(checkpoint, BuildRequest("bf16")).write(directory, None)
    monkeypatch.syspath_prepend(directory)
    client = importlib.import_module("otter_trtllm.client")
    llm = client.LLM(model=str(directory), disable_overlap_scheduler=True)
    guidance = client.Guidance(checkpoint.config.to_json()["signals"][0])
    ((logits, reward),) = client.forward(llm, [PROMPT], guidance, 128)
    expected = reference(checkpoint, PROMPT)
    assert relative(logits, expected["logits"][-1].numpy()) < TOLERANCE
    assert abs(float(reward[0]) - float(expected["reward"][-1])) < TOLERANCE
    for name in [n for n in sys.modules if n.startswith("otter_trtllm")]:
        del sys.modules[name]
