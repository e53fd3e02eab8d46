"""L3: ``verify`` on engines of target ``trt``: by the graph that was kept, on the CPU."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from otter_export.checkpoint import Checkpoint
from otter_export.converters.target import BuildRequest
from otter_export.converters.tensorrt.options import TensorRTOptions
from otter_export.converters.tensorrt.target import TARGET
from otter_export.errors import EngineError, UnsupportedError
from otter_export.evaluation.kept_graph import verifiable
from otter_export.evaluation.stored_codes import dequantized_linear
from otter_export.evaluation.stored_weights import StoredWeights, checkpoint_weights, mismatches
from otter_export.evaluation.subject import Options
from otter_export.evaluation.verification import verify
from otter_export.manifest import EngineManifest
from tests import built, tiny
from tests.devices import has_gpu, skip_unless_built_for_this_gpu
from tests.evaluation.conftest import PROMPTS

USABLE = [a.name for a in TARGET.availability() if a.usable and a.name != "tensorrt-llm"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not USABLE:
        pytest.skip("no builder of target trt can be used here (otter-export list targets)")
    return tmp_path_factory.mktemp("verify-trt")


def engine(root: Path, precision: str) -> Path:
    """An engine with its checkpoint beside it; each is built once."""
    if not (root / "ck").exists():
        built.random_checkpoint(root / "ck", signals=(tiny.REWARD, tiny.NEXT))
    directory = root / precision
    if not directory.exists():
        # Chunks of 16 tokens: the check of forward passes must not count the prompt's.
        options = TensorRTOptions(
            builder=USABLE[0], max_candidates=8, max_step=16, plugin=False, keep_onnx=True
        )
        request = BuildRequest(precision, 64, options)
        directory.mkdir()
        plan = TARGET.plan(Checkpoint.open(root / "ck"), request)
        plan.write(directory, None).save(directory)
    return directory


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_all_checks_pass(root: Path, precision: str) -> None:
    options = Options((*PROMPTS, "w4 " * 20), provider="cpu")
    report = verify(engine(root, precision), None, options)
    assert report.failed == ()
    not_run = {r.name for r in report.results if r.passed is None}
    assert not_run == {"exact kernels", "base", "experts"}
    assert report.precision == precision


def test_a_changed_weight_is_found(root: Path, tmp_path: Path) -> None:
    """Through `mismatches` itself: the hash of the file would tell first."""
    directory = tmp_path / "int8"
    shutil.copytree(engine(root, "int8"), directory)
    checkpoint = Checkpoint.open(root / "ck")
    names = frozenset(checkpoint_weights(checkpoint))
    assert list(mismatches(StoredWeights(directory / "model.onnx", names), checkpoint)) == []
    path = directory / "model.onnx.data"
    content = bytearray(path.read_bytes())
    stored = StoredWeights(directory / "model.onnx", names)
    weight = next(w for w in stored.weights if w.bits == 8)
    tensor = stored._tensors[weight.name]
    content[tensor.offset] ^= 0x40  # type: ignore[attr-defined]
    path.write_bytes(content)
    found = list(mismatches(StoredWeights(directory / "model.onnx", names), checkpoint))
    assert [name for name, _ in found] == [weight.name]


def test_codes_by_hand() -> None:
    """Two blocks of two along ``in``, three rows of ``out``."""
    codes = np.array([[1, -2, 3], [4, 5, -6], [7, 0, 1], [-7, 2, 2]], np.int8)
    scales = np.array([[0.5, 1.0, 2.0], [1.0, 0.25, 4.0]], np.float16)
    values, quantized = dequantized_linear(4, codes, scales)
    assert values.tolist() == [[0.5, 2.0, 7.0, -7.0], [-2.0, 5.0, 0.0, 0.5], [6.0, -12.0, 4.0, 8.0]]
    assert quantized.codes.shape == (3, 2, 2) and quantized.half
    assert quantized.codes[0, 0].tolist() == [9, 12]
    whole, _ = dequantized_linear(8, codes, np.array([1, 2, 4], np.float16))
    assert whole[1].tolist() == [-4.0, 10.0, 0.0, 4.0]


def test_an_engine_without_its_graph(root: Path, tmp_path: Path) -> None:
    directory = tmp_path / "fp16"
    shutil.copytree(engine(root, "fp16"), directory)
    (directory / "model.onnx").unlink()
    manifest = EngineManifest.load(root / "fp16")
    with pytest.raises(UnsupportedError, match=r"has no model.onnx; .* build .*--keep-onnx"):
        verifiable(directory, manifest, Options(PROMPTS))


def test_an_engine_of_tensorrt_llm(root: Path) -> None:
    directory = engine(root, "fp16")
    manifest = EngineManifest.load(directory)
    other = dataclasses.replace(manifest, options={**manifest.options, "builder": "tensorrt-llm"})
    with pytest.raises(
        UnsupportedError, match=r"runs in TensorRT-LLM, which verify does not drive"
    ):
        verifiable(directory, other, Options(PROMPTS))


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_gpu_the_cpu_must_be_asked_for(root: Path) -> None:
    with pytest.raises(EngineError, match=r"needs an NVIDIA GPU; .*on the CPU: --provider cpu"):
        verify(engine(root, "fp16"), None, Options(PROMPTS))


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="needs a CUDA device")
@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_all_checks_pass_on_a_gpu(root: Path, precision: str) -> None:
    """The plan itself computes; its weights are read from the graph."""
    directory = engine(root, precision)
    skip_unless_built_for_this_gpu(directory)
    assert verify(directory, None, Options(PROMPTS, provider="cuda")).failed == ()


def test_the_manifest_on_disk_stays_as_it_is(root: Path) -> None:
    directory = engine(root, "fp16")
    before = json.loads((directory / "engine.json").read_text())
    manifest, _ = verifiable(directory, EngineManifest.load(directory), Options((), provider="cpu"))
    assert manifest.model_file == "model.onnx"
    assert json.loads((directory / "engine.json").read_text()) == before
