"""L4: the TensorRT backend, with everything but the GPU: bindings, profiles, graphs, messages.

The stand-in for TensorRT runs the same ONNX graph by ONNX Runtime, on the addresses and shapes that
the backend binds, so tokens equal those of the ``onnx`` engine exactly.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from otter_export import ArgsGreedy, Plain, Request, generate
from otter_export.errors import EngineError, MissingDependencyError, OtterError, UnsupportedError
from otter_export.manifest import EngineManifest
from otter_export.runtime.backends import tensorrt as backend
from otter_export.runtime.backends.in_place import InPlaceEngine
from otter_export.runtime.backends.tensorrt_executor import TensorRTExecutor
from otter_export.runtime.backends.tensorrt_library import (
    check_capability,
    import_library,
    load_plan,
)
from otter_export.runtime.backends.tensorrt_profiles import Profile, choose_profile
from otter_export.runtime.prefill import prefill
from tests.runtime.fake_engine import ByteTokenizer
from tests.runtime.in_place.fake_tensorrt import FakeTensorRT, FakeTrtEngine
from tests.runtime.in_place.graphs import MAX_BATCH, MAX_CANDIDATES, MAX_STEP, Pair, make_pair

#: Of decoding, then of prompts.
PROFILES = (
    ((1, 1, 1), (MAX_BATCH, MAX_STEP, 1)),
    ((1, 1, 1), (MAX_BATCH, MAX_CANDIDATES, MAX_CANDIDATES)),
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("trt"), "llama", 0, "f32")


@dataclasses.dataclass
class Loaded:
    engine: InPlaceEngine
    executor: TensorRTExecutor
    trt: FakeTensorRT

    @property
    def plan(self) -> FakeTrtEngine:
        assert self.trt.engine is not None
        return self.trt.engine


def manifest_of(pair: Pair, **options: object) -> EngineManifest:
    manifest = pair.in_place.manifest
    built = {"builder": "tensorrt", "builder_version": "10.15.1", **manifest.options, **options}
    return dataclasses.replace(manifest, model_file="rank0.engine", options=built)


@pytest.fixture
def loaded(pair: Pair, tmp_path: Path) -> Loaded:
    (tmp_path / "rank0.engine").write_bytes(str(pair.model).encode())
    trt, manifest = FakeTensorRT(PROFILES), manifest_of(pair)
    executor = TensorRTExecutor(manifest, load_plan(tmp_path, manifest, trt), trt.device)  # type: ignore[arg-type]
    engine = InPlaceEngine(tmp_path, manifest, executor)
    engine.__dict__["tokenizer"] = ByteTokenizer()
    return Loaded(engine, executor, trt)


def ids(length: int, seed: int = 0) -> list[int]:
    found: list[int] = np.random.default_rng(seed).integers(3, 128, length).tolist()
    return found


def requests() -> list[Request]:
    return [
        Request(ids(5), ArgsGreedy(top_k=6, weight=3.0, prune=False), max_tokens=20),
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


def test_a_larger_buffer_ends_the_graphs_that_hold_its_address(loaded: Loaded) -> None:
    generate(loaded.engine, requests()[0])
    steps = loaded.executor._steps
    assert len(steps) > 0
    loaded.executor._buffer("input_ids", 1 << 16)
    assert len(steps) == 0


def test_memory_that_is_given_up_ends_its_graphs(loaded: Loaded) -> None:
    cache, _ = prefill(loaded.engine, [ids(3)])
    tree = np.eye(2, dtype=bool)[None]
    for _ in range(4):
        loaded.engine.forward(cache, np.array([[5, 6]]), np.full((1, 2), 3), tree, 2)
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


@pytest.mark.parametrize(
    ("options", "module", "error", "message"),
    [
        ({"builder": "tensorrt-llm"}, None, UnsupportedError, "built by TensorRT-LLM.*its own"),
        ({"builder": "nvcc"}, None, EngineError, "builder is 'nvcc'; accepted: tensorrt-rtx, tens"),
        (
            {},
            None,
            EngineError,
            r"built with tensorrt 10.15.1, which is not installed.*pip install ",
        ),
        ({"builder": "tensorrt-rtx"}, None, MissingDependencyError, r"pip.*otter-export\[trt\]"),
        ({}, "10.16.0.1", EngineError, "built with tensorrt 10.15.1, installed is 10.16.0.1; inst"),
        (
            {"builder": "tensorrt-rtx", "builder_version": "1.6.0.5"},
            "1.7.1.116",
            EngineError,
            "tensorrt_rtx 1.6.0.5, installed is 1.7.1.116; install tensorrt-rtx-cu13==1.6.0, or",
        ),
    ],
)
def test_a_library_that_does_not_fit(
    pair: Pair,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    module: str | None,
    error: type[OtterError],
    message: str,
) -> None:
    for name in ("tensorrt", "tensorrt_rtx"):
        found = None if module is None else SimpleNamespace(__version__=module)
        monkeypatch.setitem(sys.modules, name, found)
    with pytest.raises(error, match=message) as caught:
        import_library(manifest_of(pair, **options))
    assert "\n" not in str(caught.value)


def test_the_build_number_of_a_version_does_not_matter(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.15.1.30"))
    assert import_library(manifest_of(pair, builder_version="10.15.1.29"))


def test_a_gpu_that_the_engine_was_not_built_for(pair: Pair) -> None:
    manifest = manifest_of(pair, compute_capabilities=["8.0", "12.0"])
    check_capability(manifest, "12.0")
    check_capability(manifest_of(pair), "9.0")
    with pytest.raises(
        EngineError, match=r"capability 8.9; the engine was built for 8.0, 12.0.*--sm 89"
    ):
        check_capability(manifest, "8.9")


def test_a_damaged_plan(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "rank0.engine").write_bytes(b"\0garbage")
    with pytest.raises(EngineError, match=r"cannot load rank0.engine: first: bad magic. Build the"):
        load_plan(tmp_path, manifest_of(pair), FakeTensorRT(PROFILES))


def test_a_damaged_plan_in_the_real_library(pair: Pair, tmp_path: Path) -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    (tmp_path / "rank0.engine").write_bytes(b"garbage" * 100)
    with pytest.raises(EngineError, match=r"refuses rank0.engine: malformed engine") as caught:
        load_plan(tmp_path, manifest_of(pair), trt)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 95}, "past_key_values.0.key has shape .*96.*expected .*95"),
        ({"max_step": 0}, "option max_step is 0; expected a positive integer"),
        ({"max_batch_size": "8"}, "option max_batch_size is '8'"),
        ({"max_candidates": None}, "option max_candidates is None"),
        ({"capacity": 9}, "capacity 9 is below max_sequence_length 80"),
    ],
)
def test_a_plan_that_does_not_match_its_manifest(
    pair: Pair, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    (tmp_path / "rank0.engine").write_bytes(str(pair.model).encode())
    with pytest.raises(EngineError, match=message):
        load_plan(tmp_path, manifest_of(pair, **options), FakeTensorRT(PROFILES))


def test_other_caches_than_the_manifest_says(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "rank0.engine").write_bytes(str(pair.model).encode())
    manifest = dataclasses.replace(manifest_of(pair), cache_form="read_only")
    with pytest.raises(EngineError, match="cache_form is 'read_only'; target trt runs 'in_place'"):
        load_plan(tmp_path, manifest, FakeTensorRT(PROFILES))
    inputs = tuple(dataclasses.replace(s, dtype="float16") for s in manifest.inputs)
    manifest = dataclasses.replace(manifest_of(pair), inputs=inputs)
    with pytest.raises(EngineError, match=r"past_key_values.0.key is float32, expected float16"):
        load_plan(tmp_path, manifest, FakeTensorRT(PROFILES))


def test_a_cache_that_is_not_updated_in_place(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rank0.engine").write_bytes(str(pair.model).encode())
    alias = "get_aliased_input_tensor"
    monkeypatch.setattr(FakeTrtEngine, alias, lambda self, name: None, raising=False)
    with pytest.raises(EngineError, match=r"output present.0.key is not updated in place of past"):
        load_plan(tmp_path, manifest_of(pair), FakeTensorRT(PROFILES))


def test_the_plugin_is_registered_before_the_plan_is_read(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from otter_export.plugins import tensorrt as plugin

    calls: list[tuple[object, Path]] = []
    monkeypatch.setattr(plugin, "register", lambda trt, folder: calls.append((trt, folder)))
    (tmp_path / "rank0.engine").write_bytes(b"\0garbage")
    trt = FakeTensorRT(PROFILES)
    with pytest.raises(EngineError, match="cannot load"):
        load_plan(tmp_path, manifest_of(pair, plugin_layers=14), trt)
    assert calls == [(trt, tmp_path / "plugins")]
    with pytest.raises(EngineError, match="cannot load"):
        load_plan(tmp_path, manifest_of(pair, plugin_layers=0), trt)
    assert len(calls) == 1


def test_on_the_cpu_the_graph_runs_if_it_was_kept(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"needs an NVIDIA GPU; .*--keep-onnx, .*--target onnx"):
        backend.load(tmp_path, manifest_of(pair), "cpu", None)
    engine = backend.load(pair.model.parent, manifest_of(pair), "cpu", 1)
    engine.__dict__["tokenizer"] = ByteTokenizer()
    found, expected = (generate(e, requests()[0])[0] for e in (engine, pair.onnx))
    assert found.token_ids == expected.token_ids
