"""L4: the TensorRT backend, with everything but the GPU: bindings, profiles, graphs, messages.

The stand-in for TensorRT runs the same ONNX graph by ONNX Runtime, on the addresses and shapes that
the backend binds, so tokens equal those of the ``onnx`` engine exactly.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from otter_export import ArgsGreedy, Plain, Request, generate
from otter_export.errors import EngineError
from otter_export.runtime.executors import tensorrt as backend
from otter_export.runtime.executors.tensorrt import Profile, TensorRTExecutor, choose_profile
from otter_export.runtime.executors.tensorrt_library import (
    load_plan,
)
from otter_export.runtime.prefill import prefill
from otter_export.runtime.step_engine import StepEngine
from tests.runtime.executors.fake_tensorrt import (
    PROFILES,
    FakeTensorRT,
    FakeTensorRtRtx,
    FakeTrtEngine,
    manifest_of,
)
from tests.runtime.executors.graphs import MAX_STEP, Pair, tiny_pair
from tests.runtime.fake_engine import ByteTokenizer


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return tiny_pair(tmp_path_factory.mktemp("trt"), "llama", 0, "f32")


@dataclasses.dataclass
class Loaded:
    engine: StepEngine
    executor: TensorRTExecutor
    trt: FakeTensorRT

    @property
    def plan(self) -> FakeTrtEngine:
        assert self.trt.engine is not None
        return self.trt.engine


@pytest.fixture
def loaded(pair: Pair, tmp_path: Path) -> Loaded:
    (tmp_path / "rank0.engine").write_bytes(str(pair.model).encode())
    trt, manifest = FakeTensorRT(PROFILES), manifest_of(pair)
    executor = TensorRTExecutor(manifest, load_plan(tmp_path, manifest, trt), trt.device)  # type: ignore[arg-type]
    engine = StepEngine(tmp_path, manifest, executor)
    engine.__dict__["tokenizer"] = ByteTokenizer()
    return Loaded(engine, executor, trt)


def ids(length: int, seed: int = 0) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(3, 128, length).tolist()
    return found


def requests() -> list[Request]:
    return [
        Request(ids(13), ArgsGreedy(top_k=6, weight=3.0, prune=False), max_tokens=20),
        Request(ids(33, 1), ArgsGreedy(top_k=8, weight=-2.0), max_tokens=30),
        Request(ids(20, 2), Plain(temperature=1.0), max_tokens=12, seed=3),
    ]


def test_generation_equals_the_onnx_engine(loaded: Loaded, pair: Pair) -> None:
    found, expected = (generate(e, requests(), batch_size=2) for e in (loaded.engine, pair.onnx))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.token_ids == theirs.token_ids
        np.testing.assert_allclose(ours.rewards, theirs.rewards, atol=2e-5)
    # Both kinds of run took part, and a graph has a context of its own.
    assert loaded.trt.device.launches > 10 and loaded.plan.plain_runs > 5
    graphs = sum(step._launch is not None for step in loaded.executor._steps._entries.values())
    assert len(loaded.plan.contexts) >= graphs + 2


def test_each_shape_runs_in_the_profile_that_is_tuned_for_it(loaded: Loaded) -> None:
    prefill(loaded.engine, [ids(MAX_STEP)])
    assert [c.profile for c in loaded.plan.contexts] == [0]
    cache, _ = prefill(loaded.engine, [ids(3)], 16)
    tree = np.eye(4, dtype=bool)[None]
    loaded.engine.forward(cache, np.array([[5, 6, 7, 8]]), np.full((1, 4), 3), tree, 4)
    assert [c.profile for c in loaded.plan.contexts] == [0, 1]


def test_contexts_share_their_working_memory(loaded: Loaded) -> None:
    generate(loaded.engine, requests()[0])
    memories = {context.memory for context in loaded.plan.contexts}
    assert len(memories) == 1 and len(loaded.plan.contexts) > 2


def test_a_step_that_cannot_be_captured_runs_plainly(loaded: Loaded, pair: Pair) -> None:
    prefill(loaded.engine, [ids(3)])
    loaded.plan.refuses_capture = True
    found, expected = (generate(e, requests()[0])[0] for e in (loaded.engine, pair.onnx))
    assert found.token_ids == expected.token_ids
    assert loaded.trt.device.launches == 0


def test_graphs_can_be_switched_off(loaded: Loaded, pair: Pair) -> None:
    loaded.executor._captures = False
    found, expected = (generate(e, requests()[0])[0] for e in (loaded.engine, pair.onnx))
    assert found.token_ids == expected.token_ids
    assert loaded.trt.device.launches == 0 and len(loaded.plan.contexts) == 2


def test_tensorrt_rtx_captures_by_itself(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "rank0.engine").write_bytes(str(pair.model).encode())
    trt = FakeTensorRtRtx(PROFILES)
    executor = TensorRTExecutor(
        manifest_of(pair), load_plan(tmp_path, manifest_of(pair), trt), trt.device
    )  # type: ignore[arg-type]
    engine = StepEngine(tmp_path, manifest_of(pair), executor)
    engine.__dict__["tokenizer"] = ByteTokenizer()
    found, expected = (generate(e, requests()[0])[0] for e in (engine, pair.onnx))
    assert found.token_ids == expected.token_ids
    assert trt.device.launches == 0 and trt.engine is not None
    strategies = {config.cuda_graph_strategy for config in trt.engine.configs}
    assert strategies == {trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE}


def test_a_larger_buffer_ends_the_graphs_that_hold_its_address(loaded: Loaded) -> None:
    generate(loaded.engine, requests()[0])
    steps = loaded.executor._steps
    assert len(steps) > 0
    loaded.executor._buffer("input_ids", 1 << 16)
    assert len(steps) == 0


def test_memory_that_is_given_up_ends_its_graphs(loaded: Loaded) -> None:
    cache, _ = prefill(loaded.engine, [ids(9)])
    tree = np.eye(2, dtype=bool)[None]
    for _ in range(4):
        loaded.engine.forward(cache, np.array([[5, 6]]), np.full((1, 2), 9), tree, 2)
    assert loaded.trt.device.launches == 2
    loaded.executor._forget(123456)
    assert len(loaded.executor._steps) == 1
    loaded.executor._forget(cache.blocks[1].address(0))  # type: ignore[attr-defined]
    assert len(loaded.executor._steps) == 0


def test_what_tensorrt_refuses_is_said(loaded: Loaded) -> None:
    loaded.plan.out_of_memory = True
    with pytest.raises(
        EngineError, match="TensorRT makes no execution context: it gives no reason"
    ):
        prefill(loaded.engine, [ids(3)])
    loaded.plan.out_of_memory, loaded.plan.fails = False, True
    loaded.executor._plan.log.log(SimpleNamespace(name="ERROR"), "CUDA says\nno")
    with pytest.raises(EngineError, match="TensorRT refuses the step: CUDA says no"):
        prefill(loaded.engine, [ids(3)])


def test_profiles_are_ordered_and_chosen_by_the_length_of_steps() -> None:
    short, long = Profile(1, (1, 1, 1), (4, 8, 8)), Profile(0, (1, 1, 1), (4, 64, 1))
    assert choose_profile((short, long), (2, 8, 8)) is short
    assert choose_profile((short, long), (2, 9, 1)) is long
    assert choose_profile((short, long), (2, 9, 2)) is None
    assert choose_profile((short, long), (5, 1, 1)) is None


def test_on_the_cpu_the_graph_runs_if_it_was_kept(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"needs an NVIDIA GPU; .*--keep-onnx, .*--target onnx"):
        backend.load(tmp_path, manifest_of(pair), "cpu", None)
    engine = backend.load(pair.model.parent, manifest_of(pair), "cpu", 1)
    engine.__dict__["tokenizer"] = ByteTokenizer()
    found, expected = (generate(e, requests()[0])[0] for e in (engine, pair.onnx))
    assert found.token_ids == expected.token_ids
