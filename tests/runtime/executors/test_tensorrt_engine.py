"""L3: an engine that the ``trt`` target really built; what of it runs depends on the machine.

Without a GPU: loading it says so, and its graph runs on the CPU. With one, the engine runs too.
fp16 against fp32: within 2e-2 of the largest value.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from otter_export import ArgsGreedy, Request, generate, load_engine
from otter_export.converters.target import BuildRequest
from otter_export.converters.tensorrt.options import TensorRTOptions
from otter_export.converters.tensorrt.target import TARGET
from otter_export.errors import EngineError
from otter_export.runtime.engine import Engine
from otter_export.runtime.prefill import prefill
from tests import built, tiny
from tests.devices import has_gpu, skip_unless_built_for_this_gpu
from tests.runtime.fake_engine import ByteTokenizer

TOLERANCE = 2e-2
USABLE = [a.name for a in TARGET.availability() if a.usable and a.name != "tensorrt-llm"]


@pytest.fixture(scope="module", params=["plugin", "plain"])
def directories(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """An engine of the first usable builder with its graph, and the fp32 ``onnx`` engine."""
    if not USABLE:
        pytest.skip("no builder of target trt can be used here (otter-export list targets)")
    if request.param == "plugin":
        pytest.importorskip("triton", reason="triton, which compiles the plugin, is not installed")
    root = tmp_path_factory.mktemp(request.param)
    checkpoint = built.random_checkpoint(root / "ck", signals=(tiny.REWARD, tiny.NEXT))
    options = TensorRTOptions(
        builder=USABLE[0],
        max_batch_size=4,
        max_candidates=8,
        max_step=16,
        plugin=request.param == "plugin",
        keep_onnx=True,
    )
    made = root / "trt"
    made.mkdir()
    plan = TARGET.plan(checkpoint, BuildRequest("fp16", 64, options))
    plan.write(made, None).save(made)
    return made, built.build(checkpoint, root / "onnx")


def _load(directory: Path, provider: str | None) -> Engine:
    engine = load_engine(directory, provider=provider, threads=1)
    engine.__dict__["tokenizer"] = ByteTokenizer()
    return engine


def _compare(found: Engine, expected: Engine) -> None:
    """A padded batch of prompts, then steps of candidates: enough of one shape for a CUDA graph.

    The tokens are given, so that a near-tie cannot lead the engines apart. Of each step another row
    is kept, which moves.
    """
    prompts = [np.random.default_rng(i).integers(3, 128, n).tolist() for i, n in enumerate((40, 7))]
    caches = [prefill(engine, prompts)[0] for engine in (found, expected)]
    tree = np.broadcast_to(np.eye(3, dtype=np.bool_), (2, 3, 3))
    for round_ in range(6):
        ids = np.random.default_rng(round_).integers(3, 128, (2, 3))
        steps = []
        for engine, cache in zip((found, expected), caches, strict=True):
            positions = np.repeat(cache.lengths[:, None], 3, 1)
            steps.append(engine.forward(cache, ids, positions, tree, 3))
            engine.commit(cache, steps[-1], [[round_ % 3], [2]])
        assert built.relative(steps[0].logits, steps[1].logits) < TOLERANCE
        for name, values in steps[1].signals.items():
            assert np.abs(steps[0].signals[name] - values).max() < TOLERANCE


def test_its_graph_runs_on_the_cpu(directories: tuple[Path, Path]) -> None:
    found, expected = _load(directories[0], "cpu"), _load(directories[1], "cpu")
    _compare(found, expected)
    request = Request([5, 6, 7], ArgsGreedy(top_k=8, weight=2.0), max_tokens=30)
    assert len(generate(found, request)[0].token_ids) > 0


@pytest.mark.skipif(has_gpu(), reason="there is a GPU")
def test_without_a_gpu_loading_says_so(directories: tuple[Path, Path]) -> None:
    with pytest.raises(EngineError, match="needs an NVIDIA GPU") as caught:
        load_engine(directories[0])
    assert "\n" not in str(caught.value)


@pytest.mark.gpu
@pytest.mark.skipif(not has_gpu(), reason="needs a CUDA device")
def test_it_runs_on_a_gpu(directories: tuple[Path, Path]) -> None:
    skip_unless_built_for_this_gpu(directories[0])
    engine = _load(directories[0], None)
    _compare(engine, _load(directories[1], "cpu"))
    request = Request([5, 6, 7], ArgsGreedy(top_k=8, weight=2.0), max_tokens=30)
    assert len(generate(engine, request)[0].token_ids) > 0
