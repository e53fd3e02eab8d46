"""L2: what cannot be built is one clear error, before or while weights are written."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from otter_export.base_model import BaseModel
from otter_export.checkpoint import Checkpoint
from otter_export.cli import main
from otter_export.errors import UnsupportedError
from tests import built, tiny

EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return built.random_checkpoint(tmp_path / "ck").directory


def change(checkpoint: Path, file: str, name: str, value: float) -> None:
    tensors = load_file(checkpoint / file)
    tensors[name].flat[5] = value
    save_file(tensors, checkpoint / file, {"format": "pt"})


def command(*arguments: object) -> tuple[int, str, str]:
    """Run the command line in this process: status, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as caught,
    ):
        main([str(argument) for argument in arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code, out.getvalue(), err.getvalue()


def fails(checkpoint: Path, *options: str) -> str:
    """Run ``build``; it must exit with 2, one line and no engine. Returns the line."""
    status, _, stderr = command(
        "build", checkpoint, "--out", checkpoint.parent / "engine", *options
    )
    assert status == 2
    assert "Traceback" not in stderr
    left = {path.name for path in checkpoint.parent.iterdir()}
    assert left == {"ck", "ck-base"}, "something of a half-made engine was left"
    return stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_base_weight_that_is_not_finite(
    checkpoint: Path, name: str, precision: str, value: float
) -> None:
    change(checkpoint, "model.safetensors", name, value)
    line = fails(checkpoint, "--precision", precision)
    assert line.startswith(f"error: tensor {name} holds NaN or infinity")


def test_an_inserted_weight_that_is_not_finite(checkpoint: Path) -> None:
    name = "model.layers.0.mlp.up_proj.otter.from_base"
    change(checkpoint, "otter.safetensors", name, np.nan)
    assert name in fails(checkpoint)


@pytest.mark.parametrize("ep", ["cpu", "cuda"])
def test_a_base_weight_beyond_float16(checkpoint: Path, ep: str) -> None:
    change(checkpoint, "model.safetensors", EMBEDDING, 1e5)
    line = fails(checkpoint, "--precision", "fp16", "--ep", ep)
    assert EMBEDDING in line and "100000" in line and "fp32" in line


def test_an_inserted_weight_beyond_float16_matters_on_a_gpu_only(checkpoint: Path) -> None:
    name = "model.layers.0.mlp.down_proj.otter.from_base"
    change(checkpoint, "otter.safetensors", name, 1e5)
    assert name in fails(checkpoint, "--precision", "fp16", "--ep", "cuda")
    built.build(
        Checkpoint.open(checkpoint), checkpoint.parent / "cpu", precision="fp16"
    )  # the channel stays in float32 there


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "int8", "--ep", "cuda"], "int8 is not available .* available: fp32, fp16"),
        (["--precision", "fp8"], "fp8 is not available .* available: fp32, fp16, int8, int4"),
        (["--ep", "tpu"], "--ep tpu: target onnx knows cpu, cuda"),
        (["--target", "onx"], "unknown target 'onx'.*onnx"),
        (["--max-seq-len", "129"], "129: the base has 128 positions; choose 1 to 128"),
        (["--max-seq-len", "0"], "choose 1 to 128"),
    ],
)
def test_requests_that_have_no_engine(checkpoint: Path, options: list[str], message: str) -> None:
    assert re.search(message, fails(checkpoint, *options))


def test_whatever_mobius_raises_is_one_line(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise AssertionError("no such op")

    monkeypatch.setattr("mobius.build", broken)
    assert "cannot build a graph for" in (line := fails(checkpoint))
    assert line.endswith("AssertionError: no such op")


def test_a_quantised_base_is_refused(tmp_path: Path) -> None:
    directory = tiny.write_base(tmp_path / "base", quantization_config={"quant_method": "gptq"})
    with pytest.raises(UnsupportedError, match=r"plain F32, F16 or BF16 weights.*unquantised"):
        BaseModel.open(directory)


def test_a_shorter_engine_says_so(checkpoint: Path) -> None:
    engine = built.build(
        Checkpoint.open(checkpoint), checkpoint.parent / "short", max_sequence_length=32
    )
    assert json.loads((engine / "engine.json").read_text())["max_sequence_length"] == 32


def test_a_dry_run_writes_nothing_and_counts_every_byte(checkpoint: Path) -> None:
    status, stdout, _ = command("build", checkpoint, "--dry-run", "--json")
    assert status == 0
    shown = json.loads(stdout)
    engine = built.build(Checkpoint.open(checkpoint), checkpoint.parent / "engine")
    # Small tensors lie in model.onnx itself, large ones beside it: padded to alignment, or in a
    # file of the checkpoint, which is linked with all that it holds.
    large = sum(w["bytes"] for w in shown["weights"] if w["bytes"] >= 1024)
    names = ("model.onnx.data", "base-1.safetensors")
    size = sum((engine / name).stat().st_size for name in names)
    assert large <= size < large + 64 * len(shown["weights"]) + 16384
    assert sorted(p.name for p in checkpoint.parent.iterdir()) == ["ck", "ck-base", "engine"]
