"""L5, on a machine with a GPU: the builder ``tensorrt``, which builds for the GPU at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from otter_export.checkpoint import Checkpoint
from otter_export.cuda import gpu_capabilities
from otter_export.manifest import EngineManifest
from tests.command_line import Cli


@pytest.mark.gpu
@pytest.mark.skipif(not gpu_capabilities(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "int4"])
def test_tensorrt_builds_for_this_gpu(
    checkpoint: Checkpoint, tmp_path: Path, cli: Cli, precision: str
) -> None:
    pytest.importorskip("tensorrt", reason="TensorRT is not installed")
    out = tmp_path / "engine"
    done = cli(
        "build", checkpoint.directory, "--target", "trt", "--builder", "tensorrt",
        "--precision", precision, "--max-seq-len", 64, "--max-step", 16, "--keep-onnx",
        "--out", out,
    )  # fmt: skip
    assert done.status == 0, done.stderr
    options = EngineManifest.load(out).options
    assert options["builder"] == "tensorrt"
    assert options["compute_capabilities"] == [gpu_capabilities()[0]]
    checked = cli("verify", out, "--checkpoint", checkpoint.directory, "--provider", "cuda")
    assert checked.status == 0, checked.stdout + checked.stderr
