"""L4: a request gets the same alone and in a crowd, bit for bit, from built engines on the CPU."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest

from otter_export import (
    ArgsGreedy,
    ArgsStochastic,
    Plain,
    Request,
    TokenEvent,
    load_engine,
    stream,
)
from otter_export.runtime.engine import Engine
from otter_export.runtime.prefill import feed
from otter_export.runtime.scheduler import decode
from tests import built

#: GPT-2 has a key head for every query head, so one candidate is one row of a product. Its int8 is
#: in blocks of 64, which divide its widths and treat rows alike; the llama's in blocks of 128.
ENGINES = [
    ("llama", "fp32"),
    ("llama", "int8"),
    ("llama", "int4"),
    ("gpt2", "fp32"),
    ("gpt2", "int8"),
]
#: Prompt lengths of the others in a batch.
NEIGHBOURS = ([3], [3, 90], [40, 3, 3, 3, 3], [1] * 8)
#: Nats; the tiny models' distributions have a median entropy of 3.7, so it is open and closed.
GATE = 3.7
METHODS = (
    ArgsGreedy(top_k=8, weight=4.0),
    Plain(),
    ArgsGreedy(top_k=7, weight=1.0),
    ArgsStochastic(top_k=5, weight=2.0),
    Plain(temperature=0.9, top_p=0.9),
    ArgsGreedy(top_k=3, weight=-2.0, prune=False),
    ArgsGreedy(top_k=8, weight=4.0, gate=GATE),
    ArgsStochastic(top_k=5, weight=2.0, gate=GATE),
)


@pytest.fixture(scope="module", params=ENGINES, ids="-".join)
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mobius", reason="building needs the extra 'build'")
    root = tmp_path_factory.mktemp("crowd")
    family, precision = request.param
    checkpoint = built.random_checkpoint(root / "ck", family)
    return built.build(checkpoint, root / "engine", precision=precision)


@pytest.fixture(scope="module", params=[1, 2], ids=["one thread", "two threads"])
def engine(request: pytest.FixtureRequest, directory: Path) -> Engine:
    return load_engine(directory, threads=request.param)


def heard(engine: Engine, requests: list[Request], batch_size: int = 1) -> list[list[TokenEvent]]:
    """The events of each request, as if it was the first."""
    events: list[list[TokenEvent]] = [[] for _ in requests]
    for item in stream(engine, requests, batch_size=batch_size):
        if isinstance(item, TokenEvent):
            events[item.request].append(dataclasses.replace(item, request=0))
    return events


@pytest.mark.parametrize("pass_rows", [0, decode.PASS_ROWS])
def test_results_are_equal_bit_for_bit(
    engine: Engine, pass_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With 0, requests move between batches whenever that saves a row.
    monkeypatch.setattr(decode, "PASS_ROWS", pass_rows)
    requests = [
        Request([3 + i, *[5 + i % 3] * (i * 3 % 35)], METHODS[i % 8], 4 + 3 * (i % 5), seed=i)
        for i in range(14)
    ]
    alone = [heard(engine, [request])[0] for request in requests]
    gated = {event.gated for i in (6, 7) for event in alone[i]}
    assert gated == {False, True}
    for batch_size in (14, 3):
        # Candidates with their logits, rewards and scores, and not only what was chosen.
        assert heard(engine, requests, batch_size) == alone


@pytest.mark.parametrize("weight", [0.5, 2.0, -2.0])
def test_pruning_changes_the_rows_that_are_fed_and_no_bit_of_the_answer(
    engine: Engine, weight: float
) -> None:
    def results(prune: bool) -> list[list[TokenEvent]]:
        method = ArgsGreedy(top_k=8, weight=weight, prune=prune)
        return heard(engine, [Request([3, 5 + i], method, max_tokens=24) for i in range(6)], 6)

    pruned, whole = (
        [[(event.token_id, event.reward) for event in events] for events in results(prune)]
        for prune in (True, False)
    )
    assert pruned == whole


@pytest.mark.parametrize("width", [1, 2, 7, 8])
def test_a_row_is_the_same_in_any_batch_and_any_capacity(engine: Engine, width: int) -> None:
    """Odd and even numbers of rows; short and long neighbours, which set the capacity."""
    ids = np.arange(1, 12).tolist()
    tokens = np.arange(20, 20 + width, dtype=np.int64)

    def rows(neighbours: list[int], extra: int) -> tuple[np.ndarray, ...]:
        cache = engine.new_cache(0)
        for length in (*neighbours, None):
            source = engine.new_cache(1)
            feed(engine, source, [ids if length is None else [7] * length])
            engine.append(cache, [(source, 0)])
        batch = len(neighbours) + 1
        wide = width + extra
        fed = np.full((batch, wide), 9, np.int64)
        fed[-1, :width] = tokens
        positions = np.repeat(cache.lengths[:, None], wide, axis=1)
        tree = np.broadcast_to(np.eye(wide, dtype=np.bool_), (batch, wide, wide))
        step = engine.forward(cache, fed, positions, tree, wide)
        return step.logits[-1, :width], step.signals["reward"][-1, :width]

    # What the loop does: an even width or always one of one, unless the engine takes any.
    widths = [{width % 2, 10 - width}, *([{0}] if width == 1 else [])]
    if not engine.even_steps:
        widths = [{0, 1, 2, 9 - width}]
    for extras, neighbours in itertools.product(widths, NEIGHBOURS):
        expected = rows([], min(extras))
        for more in extras:
            for found, wanted in zip(rows(neighbours, more), expected, strict=True):
                assert np.array_equal(found, wanted)
