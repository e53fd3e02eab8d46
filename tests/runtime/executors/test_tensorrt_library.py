"""L4: loading a TensorRT engine: which library, which GPU, which plan, and what each says."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from otter_export.errors import EngineError, MissingDependencyError, OtterError
from otter_export.runtime.executors.tensorrt_library import (
    check_capability,
    import_library,
    load_plan,
)
from tests.runtime.executors.fake_tensorrt import (
    PROFILES,
    FakeContext,
    FakeTensorRT,
    FakeTrtEngine,
    manifest_of,
)
from tests.runtime.executors.graphs import Pair, tiny_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return tiny_pair(tmp_path_factory.mktemp("trt"), "llama", 0, "f32")


@pytest.mark.parametrize(
    ("options", "module", "error", "message"),
    [
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


def test_an_empty_plan(pair: Pair, tmp_path: Path) -> None:
    (tmp_path / "rank0.engine").write_bytes(b"")
    with pytest.raises(EngineError, match=r"rank0.engine is empty: build the engine again"):
        load_plan(tmp_path, manifest_of(pair), FakeTensorRT(PROFILES))


def test_the_stand_in_has_nothing_that_the_real_library_has_not() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed")
    own = {"run", "plain_runs"}
    for fake, real in ((FakeTrtEngine, trt.ICudaEngine), (FakeContext, trt.IExecutionContext)):
        names = {name for name in vars(fake) if not name.startswith("_")} - own
        assert len(names) > 4
        assert {name for name in names if not hasattr(real, name)} == set()
    assert hasattr(trt.IRuntimeConfig, "set_execution_context_allocation_strategy")
    assert hasattr(trt.IRuntimeConfig, "cuda_graph_strategy")
    assert trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE is not None
    assert trt.ExecutionContextAllocationStrategy.USER_MANAGED is not None
    assert {"INPUT", "OUTPUT"} <= set(trt.TensorIOMode.__members__)
    assert {"FLOAT", "HALF", "BF16", "INT64", "BOOL"} <= set(trt.DataType.__members__)
