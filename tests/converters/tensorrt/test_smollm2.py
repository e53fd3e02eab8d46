"""L3: the real base, SmolLM2-135M-Instruct, built by TensorRT-RTX in three precisions."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.sentiment import material
from otter_export.converters.tensorrt import native
from otter_export.converters.tensorrt.job import profiles
from otter_export.errors import OtterError
from otter_export.manifest import EngineManifest
from tests import built, tiny
from tests.command_line import Cli

LAYERS = 30


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a random channel of the demo's width."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    try:
        base = material.prepare().base
    except OtterError as error:
        pytest.skip(f"the real base is not at hand: {error}")
    root = tmp_path_factory.mktemp("smollm2-trt")
    tiny.write_checkpoint(root / "ck", base=base, adapter=True, signals=(tiny.REWARD,), heads=3)
    built.randomize(root / "ck", gain=0.2)
    return root / "ck"


@pytest.mark.slow
# One compute capability and short steps: what is built for more is the same network. Compiling the
# plugin's kernels is tested elsewhere. A second profile doubles the time, so one engine has it.
@pytest.mark.parametrize(("precision", "count"), [("fp16", 1), ("int8", 1), ("int4", 2)])
def test_engines_of_the_real_base(
    smollm2: Path,
    tmp_path: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    count: int,
) -> None:
    monkeypatch.setattr(native, "profiles", lambda shapes: profiles(shapes)[-count:])
    out = tmp_path / "engine"
    done = cli(
        "build", smollm2, "--target", "trt", "--builder", "tensorrt-rtx", "--precision", precision,
        "--max-seq-len", 256, "--max-step", 64, "--max-batch-size", 2, "--sm", 89, "--no-plugin",
        "--out", out,
    )  # fmt: skip
    assert done.status == 0, done.stderr
    manifest = EngineManifest.load(out)
    assert len(manifest.options["profiles"]) == count
    layers = manifest.options["layers"]
    assert layers["KV_CACHE_UPDATE"] == 4 * LAYERS
    assert layers["ATTENTION_INPUT"] == 2 * LAYERS
    # The base's seven projections a layer and the tied head.
    wanted = 7 * LAYERS + 1 if precision != "fp16" else 0
    assert layers.get("DEQUANTIZE", 0) == wanted
    plan = (out / "rank0.engine").stat().st_size
    head, embedding, rest = 28e6, 28e6, 106e6  # values
    stored = {
        "fp16": 2 * (embedding + rest),  # tied: the head is the embedding
        "int8": head + 2 * embedding + rest,
        "int4": head + 2 * embedding + rest / 2,
    }
    # Kernels and cache descriptions add tens of megabytes, whatever the model.
    assert stored[precision] < plan < stored[precision] + 150e6
