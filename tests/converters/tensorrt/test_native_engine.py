"""L2: engines of a tiny Llama by TensorRT-RTX, without a GPU: the parsed network and the directory.

Numerics of the very same ONNX file are in tests/graph; here is what TensorRT made of it.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from otter_export.checkpoint import Checkpoint
from otter_export.converters.external_data import MODEL_FILE, save_model
from otter_export.converters.onnx import tensor_specs
from otter_export.converters.target import BuildRequest
from otter_export.converters.tensorrt import process
from otter_export.converters.tensorrt.check import check_built
from otter_export.converters.tensorrt.job import Built, Job, profiles
from otter_export.converters.tensorrt.options import EngineShapes, TensorRTOptions
from otter_export.converters.tensorrt.target import TARGET
from otter_export.engine_io import StepLimits
from otter_export.errors import EngineError
from otter_export.graph.pipeline import lower, tensorrt
from otter_export.manifest import EngineManifest
from otter_export.precision import TENSORRT
from tests import built, tiny
from tests.command_line import Cli
from tests.converters.tensorrt.conftest import LENGTH, OPTIONS, TinyEngine
from tests.families import bases

LAYERS, BASE_HEADS, CHANNEL_HEADS, HEAD, VOCABULARY = 2, 2, 1, 16, 128
SHAPES = EngineShapes(LENGTH, OPTIONS.max_step, OPTIONS.max_batch_size, OPTIONS.max_candidates)


@pytest.mark.parametrize("precision", TENSORRT)
def test_the_manifest_is_what_a_runtime_needs(
    engines: dict[str, TinyEngine], precision: str
) -> None:
    manifest = engines[precision].manifest
    manifest.require_form("in_place")
    limits = manifest.built_for.limits
    assert limits == StepLimits(max_batch_size=4, max_candidates=6, max_step=24, capacity=88)
    assert (manifest.target, manifest.model_file) == ("trt", "rank0.engine")
    assert (manifest.execution_provider, manifest.precision) == ("cuda", precision)
    tensors = ({s.name: s for s in side} for side in (manifest.inputs, manifest.outputs))
    manifest.check_model(*tensors)
    options = manifest.options
    assert options["builder"] == "tensorrt-rtx" and options["builder_version"].startswith("1.")
    assert options["compute_capabilities"] == ["8.0", "8.6", "8.9", "12.0"]
    assert [p["name"] for p in options["profiles"]] == ["prefill", "tree"]
    assert options["profiles"][0]["max"] == {"batch": 4, "step": 24, "kept": 6}
    assert options["profiles"][1]["max"] == {"batch": 4, "step": 6, "kept": 6}
    caches = {s.dtype for s in manifest.inputs if "key_values" in s.name}
    assert caches == {"bfloat16" if precision == "bf16" else "float16"}


@pytest.mark.parametrize("precision", TENSORRT)
def test_layers_of_the_parsed_network(engines: dict[str, TinyEngine], precision: str) -> None:
    layers = engines[precision].manifest.options["layers"]
    # Key and value of base and channel in each layer, and an attention for each of the two.
    assert layers["KV_CACHE_UPDATE"] == 4 * LAYERS
    assert layers["ATTENTION_INPUT"] == layers["ATTENTION_OUTPUT"] == 2 * LAYERS
    assert layers["ROTARY_EMBEDDING"] == 4 * LAYERS
    # An attention that was taken apart would leave one.
    assert "SOFTMAX" not in layers and "PLUGIN_V3" not in layers
    # Seven projections of the base a layer and its head, which is tied.
    quantized = layers.get("DEQUANTIZE", 0)
    assert quantized == (7 * LAYERS + 1 if precision in ("int8", "int4") else 0)


@pytest.mark.parametrize("precision", TENSORRT)
def test_the_plan_holds_the_weights(engines: dict[str, TinyEngine], precision: str) -> None:
    engine = engines[precision]
    weights = (engine.directory / "model.onnx.data").stat().st_size
    plan = (engine.directory / "rank0.engine").stat().st_size
    assert plan > weights
    listed = {file.path: file.size for file in engine.manifest.files}
    assert listed["rank0.engine"] == plan
    on_disk = {str(p.relative_to(engine.directory)) for p in engine.directory.rglob("*")}
    assert on_disk == {*listed, "engine.json"}, "something else was left in the directory"
    assert {"tokenizer.json", "model.onnx", "model.onnx.data"} <= set(listed)


def test_the_weights_in_the_plan_are_the_checkpoint_s(
    engines: dict[str, TinyEngine], checkpoint: Checkpoint
) -> None:
    """Weights are mapped, not copied: a file that is closed too early would leave other bytes."""
    plan = (engines["fp16"].directory / "rank0.engine").read_bytes()
    table = checkpoint.base.float32("model.embed_tokens.weight").astype(np.float16)
    assert table.tobytes() in plan
    changed = table.copy()
    changed[7, 3] += 1
    assert changed.tobytes() not in plan


def _job(model: ir.Model, directory: Path, **changes: object) -> Job:
    directory.mkdir(exist_ok=True)
    save_model(model, directory)
    job = Job(
        library="tensorrt_rtx",
        model=str(directory / MODEL_FILE),
        engine=str(directory / "rank0.engine"),
        profiles=profiles(SHAPES),
        compute_capabilities=("8.9",),
        cubins=None,
    )
    return dataclasses.replace(job, **changes)  # type: ignore[arg-type]


def _fused(checkpoint: Checkpoint) -> ir.Model:
    return lower(checkpoint, tensorrt(SHAPES.capacity, plugin=True), "fp16")


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Compiled kernels of the plugin."""
    cubins = pytest.importorskip("otter_export.plugins.cubins", reason="Triton is not installed")
    folder: Path = tmp_path_factory.mktemp("kernels")
    cubins.build_cubins(folder, [89], None, ("float16",))
    return str(folder)


def test_every_fused_projection_is_a_plugin_layer(
    trt: object, checkpoint: Checkpoint, kernels: str, tmp_path: Path
) -> None:
    model = _fused(checkpoint)
    wanted = sum(node.op_type == "OtterLinear" for node in model.graph)
    assert wanted == 7 * LAYERS
    shares: list[float] = []
    made = process.build(_job(model, tmp_path, cubins=kernels), shares.append)
    check_built(model, made, wanted)
    assert made.layers["PLUGIN_V3"] == wanted and made.plan_bytes > 0
    assert made.peak_memory_bytes > 50 << 20
    assert shares == sorted(shares) and shares and shares[0] > 0 and shares[-1] <= 1


@pytest.mark.parametrize(("family", "rotary"), [("gpt2", 0), ("qwen2", 4 * LAYERS)])
def test_other_families(
    trt: object, kernels: str, tmp_path: Path, family: str, rotary: int
) -> None:
    """Projections with biases; learned positions; a head that is not tied."""
    other = built.random_checkpoint(tmp_path / "ck", family, signals=(tiny.REWARD, tiny.NEXT))
    model = _fused(other)
    wanted = sum(node.op_type == "OtterLinear" for node in model.graph)
    assert wanted >= 4 * LAYERS
    made = process.build(_job(model, tmp_path / "work", cubins=kernels))
    check_built(model, made, wanted)
    assert made.layers.get("ROTARY_EMBEDDING", 0) == rotary


@pytest.mark.parametrize("name", ["mistral-window", "gemma2", "gemma3"])
def test_windows_and_soft_caps(trt: object, tmp_path: Path, name: str) -> None:
    """Masks that the graph computes, two kinds of them, and attention without its operator."""
    case = next(case for case in bases.CASES if case.name == name)
    base = bases.write_base(case, tmp_path / "base")
    model = lower(built.checkpoint_over(base, tmp_path / "ck"), tensorrt(SHAPES.capacity), "fp16")
    check_built(model, process.build(_job(model, tmp_path / "work")), 0)


def test_layers_with_and_without_a_window(trt: object, tmp_path: Path) -> None:
    """In these sizes their attentions are different kernels, which must not share a mask."""
    case = next(case for case in bases.CASES if case.name == "qwen2-window")
    base = bases.write_base(case, tmp_path / "base")
    checkpoint = built.checkpoint_over(base, tmp_path / "ck", signals=(tiny.REWARD, tiny.NEXT))
    options = TensorRTOptions(builder="tensorrt-rtx", plugin=False)
    (tmp_path / "engine").mkdir()
    TARGET.plan(checkpoint, BuildRequest("fp16", LENGTH, options)).write(tmp_path / "engine", None)
    assert (tmp_path / "engine" / "rank0.engine").stat().st_size > 0


def test_one_candidate_a_step(trt: object, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Few query heads and steps of one token: TensorRT-RTX has no kernel for this attention."""
    shapes = dataclasses.replace(SHAPES, max_candidates=1)
    model = lower(checkpoint, tensorrt(shapes.capacity), "fp16")
    made = process.build(_job(model, tmp_path, profiles=profiles(shapes)))
    check_built(model, made, 0)


def test_a_plugin_that_is_not_there_is_an_error(
    trt: object, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    model = _fused(checkpoint)
    wanted = sum(node.op_type == "OtterLinear" for node in model.graph)
    with pytest.raises(EngineError, match=r"OtterLinear|layers PLUGIN_V3"):
        check_built(model, process.build(_job(model, tmp_path)), wanted)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": {"ATTENTION_INPUT": 4, "KV_CACHE_UPDATE": 7}}, "7 layers KV_CACHE_UPDATE, exp"),
        ({"layers": {"KV_CACHE_UPDATE": 8, "SOFTMAX": 4}}, "0 layers ATTENTION_INPUT, expected 4"),
        ({"plan_bytes": 0}, "the plan is empty"),
        ({"outputs": ()}, "output logits is None"),
        ({"inputs": ()}, "input .* is None, expected .'"),
    ],
)
def test_a_network_that_is_not_the_graph(
    checkpoint: Checkpoint, change: dict[str, object], message: str
) -> None:
    model = lower(checkpoint, tensorrt(SHAPES.capacity), "fp16")

    def rows(values: object) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        return tuple(
            (s.name, s.dtype, tuple(n if isinstance(n, int) else -1 for n in s.shape))
            for s in tensor_specs(values)
        )

    good = Built(
        version="1.7",
        layers={"KV_CACHE_UPDATE": 8, "ATTENTION_INPUT": 4},
        inputs=rows(model.graph.inputs),
        outputs=rows(model.graph.outputs),
        plan_bytes=1,
        parse_seconds=0.0,
        build_seconds=0.0,
        peak_memory_bytes=1,
    )
    check_built(model, good, 0)
    with pytest.raises(EngineError, match=message):
        check_built(model, dataclasses.replace(good, **change), 0)  # type: ignore[arg-type]


def test_profiles_fit_what_the_runtime_does() -> None:
    prefill, tree = profiles(SHAPES)
    for profile in (prefill, tree):
        for size in ("batch", "step", "kept"):
            assert 1 == profile.least[size] <= profile.best[size] <= profile.most[size]
        # A step and a full prefix fit into the cache.
        assert profile.most["step"] + LENGTH <= SHAPES.capacity


def test_progress_reaches_the_end(trt: object, checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Bytes of all rounds: kernels, weights as written, weights as built."""
    pytest.importorskip("triton", reason="Triton is not installed")
    options = dataclasses.replace(OPTIONS, plugin=True, keep_onnx=False, sm="89")
    plan = TARGET.plan(checkpoint, BuildRequest("fp16", LENGTH, options))
    counts: list[int] = []
    manifest = plan.write(tmp_path, counts.append)
    assert plan.rounds == 3 and min(counts) >= 0
    # Tensors that stay inside the protobuf are not reported.
    assert 2 * plan.total_bytes < sum(counts) <= plan.rounds * plan.total_bytes
    assert manifest.options["plugin_layers"] == manifest.options["layers"]["PLUGIN_V3"] == 14


def test_the_command_line(trt: object, checkpoint: Checkpoint, tmp_path: Path, cli: Cli) -> None:
    arguments = (
        "build", checkpoint.directory, "--target", "trt", "--no-plugin", "--sm", "80,120",
        "--max-seq-len", 40, "--max-batch-size", 2, "--max-candidates", 4, "--max-step", 8,
    )  # fmt: skip
    dry = cli(*arguments, "--dry-run", "--json")
    assert dry.status == 0, dry.stderr
    planned = json.loads(dry.stdout)["details"]
    assert planned["compute_capabilities"] == ["8.0", "12.0"] and planned["plugin_layers"] == 0
    told = cli(*arguments, "--dry-run").stdout
    assert "builder tensorrt-rtx, compute capabilities 8.0 12.0, plugin layers 0\n" in told
    assert told.endswith("nothing written\n")
    out = tmp_path / "engine"
    assert not out.exists()
    done = cli(*arguments, "--out", out, "--json")
    assert done.status == 0, done.stderr
    assert json.loads(done.stdout)["builder_peak_memory_bytes"] > 50 << 20
    manifest = EngineManifest.load(out)
    assert manifest.options["capacity"] == 48 and manifest.max_sequence_length == 40
    assert not (out / "model.onnx").exists()
    shown = cli("inspect", out).stdout
    for text in (
        "target            trt, cuda, fp16, in_place caches",
        "builder tensorrt-rtx",
        "compute_capabilities 8.0, 12.0",
        "plugin_layers 0",
        "batch 1-2 (best 2), step 1-4 (best 4), kept 1-4 (best 4)",
        "KV_CACHE_UPDATE",
        "past_key_values.N.key (N < 2)",
        "otter_present.N.value (N < 2)",
    ):
        assert text in shown, text
    rows = [line.split() for line in shown.splitlines()]
    assert ["logits", "float32", "[batch,", "kept,", "128]"] in rows
    assert ["reward", "float32", "[batch,", "kept]"] in rows
