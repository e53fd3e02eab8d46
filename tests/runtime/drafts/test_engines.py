"""L4: drafts on real engines: an ONNX engine, the graph for TensorRT on the CPU, and torch."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from otter_export import ArgsGreedy, Plain, Request, generate, load_engine, stream
from otter_export.checkpoint import Checkpoint
from otter_export.draft_tokens import read_draft_tokens
from otter_export.errors import EngineError
from otter_export.manifest import EngineManifest
from otter_export.runtime.engine import Engine
from otter_export.runtime.methods.base import DecodingMethod
from otter_export.runtime.request import Result
from otter_export.signals import Signal
from tests import built
from tests.runtime.drafts.knowing import knowing

SIGNALS = (
    Signal("future", "q_value"),
    Signal("ahead", "medusa", "identity", None, heads=3),
    Signal("few", "medusa", "identity", None, heads=2, draft_vocab=20),
    Signal("reward"),
)
#: Ascending, and none the number of its place.
FEW = np.arange(20, dtype=np.int32) * 2 + 3
METHODS: tuple[DecodingMethod, ...] = (
    Plain(),
    Plain(temperature=0.8),
    ArgsGreedy(top_k=6, weight=3.0),
    ArgsGreedy(top_k=6, weight=3.0, signal="reward"),
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    root = tmp_path_factory.mktemp("drafts")
    made = built.random_checkpoint(root / "ck", signals=SIGNALS)
    tensors = load_file(made.directory / "otter.safetensors")
    tensors["signals.few.token_ids"] = FEW
    save_file(tensors, made.directory / "otter.safetensors", {"format": "pt"})
    return Checkpoint.open(made.directory)


@pytest.fixture(scope="module")
def directory(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mobius", reason="building needs the extra 'build'")
    return built.build(checkpoint, tmp_path_factory.mktemp("built") / "engine")


@pytest.fixture(scope="module", params=["onnx", "in place", "torch"])
def engine(
    request: pytest.FixtureRequest,
    checkpoint: Checkpoint,
    directory: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Engine:
    if request.param == "onnx":
        return load_engine(directory, threads=1)
    if request.param == "torch":
        pytest.importorskip("torch", reason="the reference needs the extra 'train'")
        return load_engine(checkpoint.directory, threads=1)
    from tests.runtime.executors.graphs import in_place_engine

    return in_place_engine(checkpoint, tmp_path_factory.mktemp("in-place") / "engine", "f32")


def results(engine: Engine, drafts: str) -> list[Result]:
    requests = [
        Request([5, 6, 7, 5, 6, 7, 5 + i], METHODS[i % 4], 24, seed=i, drafts=drafts)
        for i in range(8)
    ]
    done = [item for item in stream(engine, requests, batch_size=3) if isinstance(item, Result)]
    return sorted(done, key=lambda result: result.request)


@pytest.mark.parametrize("drafts", ["lookup", "ahead", "few", "auto"])
def test_the_tokens_are_those_without_drafts(engine: Engine, drafts: str) -> None:
    for plain, drafted in zip(results(engine, "none"), results(engine, drafts), strict=True):
        assert drafted.token_ids == plain.token_ids
        assert (drafted.text, drafted.finish_reason) == (plain.text, plain.finish_reason)
        # A row beside others can be added up in another order (docs/batching.md).
        assert drafted.rewards == pytest.approx(plain.rewards, abs=1e-5)
        assert drafted.forwards <= plain.forwards - (drafted.accepted or 0)


@pytest.mark.parametrize("method", METHODS[:3], ids=["greedy", "sampled", "guided"])
def test_drafts_that_are_right_are_accepted(engine: Engine, method: DecodingMethod) -> None:
    request = Request([5, 6, 7], method, 30, seed=3, drafts="lookup")
    plain = generate(engine, dataclasses.replace(request, drafts="none"))[0]
    with knowing(engine, request, 0, always=True):
        drafted = generate(engine, request)[0]
    assert drafted.token_ids == plain.token_ids
    assert drafted.accepted == drafted.drafted
    assert drafted.forwards <= 30 / 8 + 1


def test_the_tokens_of_a_reduced_vocabulary_go_with_the_engine(engine: Engine) -> None:
    signals = {signal.name: signal for signal in engine.manifest.signals}
    assert engine.token_ids(signals["ahead"]) is None
    few = engine.token_ids(signals["few"])
    assert few is not None
    assert few.tolist() == FEW.tolist()


def test_the_file_is_listed_and_read_only_when_it_is_needed(directory: Path) -> None:
    manifest = EngineManifest.load(directory)
    assert "draft_tokens.safetensors" in {file.path for file in manifest.files}
    listed = json.loads((directory / "engine.json").read_text())["signals"]
    assert [signal.get("draft_vocab") for signal in listed] == [None, None, 20, None]


def test_wrong_draft_tokens_are_one_line(directory: Path, tmp_path: Path) -> None:
    signal = SIGNALS[2]
    with pytest.raises(EngineError, match=r"has neither draft_tokens\.safetensors") as missing:
        read_draft_tokens(tmp_path, signal, 96)
    assert "\n" not in str(missing.value)
    wrong = (FEW.astype(np.int64), FEW[:-1], FEW[::-1].copy(), FEW - 4, FEW + 90)
    for ids in wrong:
        save_file({"signals.few.token_ids": ids}, tmp_path / "draft_tokens.safetensors")
        with pytest.raises(EngineError, match=r"must be 20 ascending token ids from 0 to 95"):
            read_draft_tokens(tmp_path, signal, 96)
