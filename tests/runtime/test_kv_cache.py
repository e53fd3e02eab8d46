"""L4: sequences take and give up places in the ONNX Runtime cache; what they hold stays theirs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from otter_export import load_engine
from otter_export.errors import EngineError
from otter_export.runtime.engine import Engine
from otter_export.runtime.memory.block import Move
from otter_export.runtime.memory.host import HostBlock
from otter_export.runtime.prefill import feed, prefill
from tests.runtime.executors.fake_tensorrt import bytes_at
from tests.runtime.executors.test_onnxruntime import TOLERANCE, on_fake_cuda
from tests.runtime.tiny_model import VOCAB, TinyModel, make_model

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return make_model(max_sequence_length=200)


@pytest.fixture(scope="module")
def directory(model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("slots") / "engine"
    model.save(path)
    return path


@pytest.fixture(scope="module", params=["host", "device"])
def engine(request: pytest.FixtureRequest, directory: Path) -> Engine:
    """With its caches in numpy memory, and in blocks that are copied as CUDA does."""
    if request.param == "host":
        return load_engine(directory, threads=1)
    runtime = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    return on_fake_cuda(directory, runtime)[0]


def array_of(block: Any) -> np.ndarray[Any, Any]:
    """The memory of a block, which is the host's in both engines."""
    size = math.prod(block.shape) * np.dtype(block.dtype).itemsize
    return bytes_at(block.address(0), size).view(block.dtype).reshape(block.shape)


def prompt(seed: int, length: int) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.lists(st.integers(1, 120), min_size=1, max_size=3)),
        st.tuples(st.just("select"), st.randoms(use_true_random=False)),
        st.tuples(st.just("feed"), st.integers(1, 40)),
    ),
    min_size=1,
    max_size=8,
)


@settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(OPERATIONS)
def test_whoever_comes_and_goes_the_others_keep_their_rows(
    model: TinyModel, engine: Engine, operations: list[tuple[str, Any]]
) -> None:
    cache = engine.new_cache(0)
    held: list[list[int]] = []
    for number, (operation, argument) in enumerate(operations):
        if operation == "append":
            prompts = [prompt(number * 9 + i, n) for i, n in enumerate(argument)]
            source, _ = prefill(engine, prompts)
            # In another order than they were fed.
            order = list(range(len(prompts)))[::-1]
            engine.append(cache, [(source, b) for b in order])
            held += [prompts[b] for b in order]
        elif operation == "select":
            indices = argument.sample(range(len(held)), argument.randint(0, len(held)))
            engine.select(cache, indices)
            held = [held[b] for b in indices]
        elif held:
            parts = [prompt(number, min(argument, 190 - len(ids))) for ids in held]
            feed(engine, cache, parts)
            held = [ids + part for ids, part in zip(held, parts, strict=True)]
        assert cache.lengths.tolist() == [len(ids) for ids in held]
        check(model, engine, cache, held)


def check(model: TinyModel, engine: Engine, cache: Any, held: Sequence[list[int]]) -> None:
    """The next token of every sequence sees exactly what it should."""
    if not held:
        return
    tokens = np.arange(len(held), dtype=np.int64)[:, None] % VOCAB
    tree = np.ones((len(held), 1, 1), np.bool_)
    step = engine.forward(cache, tokens, cache.lengths[:, None].copy(), tree, 1)
    for b, ids in enumerate(held):
        expected = model.reference([*ids, int(tokens[b, 0])])[0][-1]
        np.testing.assert_allclose(step.logits[b, 0], expected, atol=TOLERANCE)


def copies(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Which place was copied from which, as it happens."""
    made: list[tuple[int, int]] = []
    put = HostBlock.put

    def counted(self: HostBlock, moves: Sequence[Move], source: HostBlock) -> None:
        made.extend((move.place, move.source_place) for move in moves)
        put(self, moves, source)

    monkeypatch.setattr(HostBlock, "put", counted)
    return made


def test_a_hole_is_filled_by_one_copy(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load_engine(directory, threads=1)
    cache, _ = prefill(engine, [prompt(i, 20) for i in range(6)])
    made = copies(monkeypatch)
    engine.select(cache, [0, 5, 2, 3, 4])
    # Twice: the base's block and the channel's.
    assert made == [(1, 5)] * 2
    engine.select(cache, [0, 1, 2])
    assert len(made) == 2


def test_a_join_copies_the_newcomer_alone_and_growth_is_amortised(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load_engine(directory, threads=1)
    source, _ = prefill(engine, [prompt(1, 20)])
    cache = engine.new_cache(0)
    made = copies(monkeypatch)
    for _ in range(64):
        engine.append(cache, [(source, 0)])
    # 64 newcomers, twice; moving to larger memory costs at most five times as much again, since a
    # quarter is added each time, and not 64 * 63 / 2.
    assert 128 <= len(made) <= 6 * 128
    assert cache.places <= 64 + 16 + 2  # type: ignore[attr-defined]


def test_memory_follows_the_longest_sequence_down_again(directory: Path) -> None:
    engine = load_engine(directory, threads=1)
    cache, _ = prefill(engine, [prompt(1, 180), prompt(2, 20), prompt(3, 33)])
    assert cache.slots == 192  # type: ignore[attr-defined]
    engine.select(cache, [1, 2])
    assert cache.slots == 64  # type: ignore[attr-defined]
    # Not for less than half, so that sequences of about one length do not move at every turn.
    engine.select(cache, [0])
    assert cache.slots == 64  # type: ignore[attr-defined]


def test_a_step_from_before_a_change_cannot_be_committed(directory: Path) -> None:
    engine = load_engine(directory, threads=1)
    cache, _ = prefill(engine, [prompt(1, 5), prompt(2, 5)])
    source, _ = prefill(engine, [prompt(3, 5)])
    tree = np.ones((2, 1, 1), np.bool_)
    inputs = (np.ones((2, 1), np.int64), np.full((2, 1), 5), tree)
    for change in (
        lambda: engine.select(cache, [1, 0]),
        lambda: engine.append(cache, [(source, 0)]),
    ):
        step = engine.forward(cache, *inputs, 1)
        change()
        with pytest.raises(EngineError, match="committed once"):
            engine.commit(cache, step, [[0], [0]])


def test_what_a_sequence_left_behind_does_not_spoil_the_next(engine: Engine) -> None:
    """It may have left because it gave NaN, and 0 * NaN is NaN even under a mask."""
    cache, _ = prefill(engine, [prompt(1, 5), prompt(2, 40)])
    source, _ = prefill(engine, [prompt(3, 3)])
    for block in cache.blocks:  # type: ignore[attr-defined]
        array_of(block)[:, 1] = np.nan
    engine.select(cache, [0])
    engine.append(cache, [(source, 0)])
    tree = np.ones((2, 1, 1), np.bool_)
    step = engine.forward(cache, np.ones((2, 1), np.int64), cache.lengths[:, None].copy(), tree, 1)
    assert np.isfinite(step.logits).all()
