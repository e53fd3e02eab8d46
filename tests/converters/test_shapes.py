"""L2, L4: engines of every shape of a channel: verification, decoding, precisions, old directories.

Parity with the torch reference is in test_parity.py, all families are in tests/families/cells.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from otter_export import ArgsGreedy, Plain, Request, generate, load_engine
from otter_export.checkpoint import Checkpoint
from otter_export.converters.onnx import OnnxOptions
from otter_export.converters.target import BuildRequest
from otter_export.converters.tensorrt.options import TensorRTOptions
from otter_export.converters.tensorrt.target import TARGET as TRT
from otter_export.evaluation.subject import Options
from otter_export.evaluation.verification import verify
from otter_export.inspection import inspect
from tests import built, tiny
from tests.converters.conftest import tokens
from tests.tree_steps import assert_equal_to_separate_forwards

#: Of a base of two layers.
SHAPES: dict[str, dict[str, Any]] = {
    "upper half": {"first_layer": 1},
    "shared": {"attention": "shared"},
    "upper half, shared": {"first_layer": 1, "attention": "shared"},
    "probe": {"first_layer": 2},
}
PROMPTS = ([5, 9, 30], [100, 3, 4, 19, 77, 8, 12, 60, 33], [7])


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One base, and a checkpoint and engine of each shape, by its name."""
    root: Path = tmp_path_factory.mktemp("shapes")
    base = tiny.write_base(root / "base")
    for name, shape in SHAPES.items():
        signals = (tiny.REWARD, tiny.NEXT)
        checkpoint = built.checkpoint_over(base, root / name, signals=signals, **shape)
        built.build(checkpoint, root / f"{name} fp32")
    return root


VERIFIED = [
    *((name, "fp32") for name in SHAPES),
    *(("upper half, shared", precision) for precision in ("fp16", "int8", "int4")),
    ("probe", "int8"),
]


@pytest.mark.parametrize(("name", "precision"), VERIFIED)
def test_an_engine_passes_verification(root: Path, name: str, precision: str) -> None:
    """Its weights, base bits, parity, tree steps, chunks, weight 0 and forward passes."""
    directory = root / f"{name} {precision}"
    if not directory.exists():
        built.build(Checkpoint.open(root / name), directory, precision=precision)
    report = verify(directory, root / name, Options(PROMPTS, max_tokens=5))
    report.raise_for_failures()


@pytest.mark.parametrize("name", SHAPES)
def test_a_step_of_candidates_equals_separate_forwards(root: Path, name: str) -> None:
    assert_equal_to_separate_forwards(load_engine(root / f"{name} fp32", threads=1))


@pytest.mark.parametrize("name", SHAPES)
def test_a_sequence_gets_the_same_in_a_batch_as_alone(root: Path, name: str) -> None:
    """Prompts of unequal lengths join, and leave as their limits come."""
    engine = load_engine(root / f"{name} fp32", threads=1)
    methods = (ArgsGreedy(top_k=4, weight=2.0), Plain(), ArgsGreedy(top_k=6, weight=1.0))
    requests = [
        Request(prompt, method, max_tokens=4 + 3 * i)
        for i, (prompt, method) in enumerate(zip(PROMPTS, methods, strict=True))
    ]
    together = generate(engine, requests, batch_size=len(requests))
    for request, found in zip(requests, together, strict=True):
        (alone,) = generate(engine, [request])
        assert (found.token_ids, found.rewards) == (alone.token_ids, alone.rewards)


def test_the_channels_cache_is_as_large_as_its_shape_needs(root: Path) -> None:
    def size(name: str) -> int:
        cache = load_engine(root / f"{name} fp32", threads=1).new_cache(1)
        blocks = [block.shape for block in cache.blocks]  # type: ignore[attr-defined]
        assert blocks[0][0] == 4  # the base's keys and values of two layers
        return sum(shape[0] for shape in blocks[1:])

    assert {name: size(name) for name in SHAPES} == {
        "upper half": 2,
        "shared": 2,
        "upper half, shared": 1,
        "probe": 0,
    }


def test_the_engine_says_its_shape(root: Path) -> None:
    for name, shape in SHAPES.items():
        wanted = {"first_layer": 0, "attention": "own", **shape}
        for directory in (root / name, root / f"{name} fp32"):
            channel = inspect(directory).to_json()["channel"]
            assert {key: channel[key] for key in wanted} == wanted


def test_an_engine_of_an_older_release_runs_as_before(tmp_path: Path) -> None:
    """Its ``engine.json`` says nothing of shapes."""
    directory = built.build(built.random_checkpoint(tmp_path / "ck"), tmp_path / "engine")
    request = Request(PROMPTS[1], ArgsGreedy(top_k=4, weight=2.0), max_tokens=6)
    (expected,) = generate(load_engine(directory, threads=1), [request])
    path = directory / "engine.json"
    data = json.loads(path.read_text())
    del data["channel"]["first_layer"], data["channel"]["attention"]
    path.write_text(json.dumps(data))
    (found,) = generate(load_engine(directory, threads=1), [request])
    assert (found.token_ids, found.rewards) == (expected.token_ids, expected.rewards)


@pytest.mark.parametrize("name", SHAPES)
def test_the_cuda_form_equals_the_cpu_form(root: Path, name: str, tmp_path: Path) -> None:
    """1e-4 of the largest magnitude: the same float32 sums in another order."""
    checkpoint = Checkpoint.open(root / name)
    built.build(checkpoint, tmp_path / "cuda", options=OnnxOptions("cuda"))
    ids = tokens(2, 16)
    found = built.Graph.load(tmp_path / "cuda")(ids)
    expected = built.Graph.load(root / f"{name} fp32")(ids)
    for output in ("logits", "reward", "next"):
        assert built.relative(found[output], expected[output]) < 1e-4


@pytest.mark.parametrize("heads", [2, 4], ids=["some keys", "all keys"])
def test_tensorrt_builds_shared_attention(root: Path, heads: int, tmp_path: Path) -> None:
    """Without a GPU; two attentions that read the same keys end TensorRT-RTX 1.7."""
    builders = (a.name for a in TRT.availability() if a.usable and not a.needs_gpu)
    builder = next(builders, None)
    if builder is None:
        pytest.skip("no builder of target trt can be used here without a GPU")
    shape = {**SHAPES["upper half, shared"], "heads": heads}
    checkpoint = built.checkpoint_over(root / "base", tmp_path / "ck", **shape)
    sizes = {"max_batch_size": 2, "max_candidates": 4, "max_step": 16}
    options = TensorRTOptions(builder, plugin=False, sm="89", **sizes)
    (tmp_path / "engine").mkdir()
    plan = TRT.plan(checkpoint, BuildRequest("fp16", 64, options))
    manifest = plan.write(tmp_path / "engine", None)
    assert manifest.options["layers"]["KV_CACHE_UPDATE"] == 5
    assert manifest.options["layers"]["ATTENTION_INPUT"] == 3
