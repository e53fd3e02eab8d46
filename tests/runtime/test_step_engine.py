"""L4: the step engine on an executor of digests equals `FakeEngine`, whatever is asked of it.

A digest changes with everything that a token could see, so equality is exact.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_export import ArgsGreedy, ArgsStochastic, Plain, Request, engine_io, generate
from otter_export.errors import EngineError
from otter_export.runtime.engine import Engine, Step
from otter_export.runtime.prefill import prefill
from otter_export.signals import Signal
from tests.runtime.digest_executor import make_engine
from tests.runtime.fake_engine import REWARD, make_manifest

SIGNALS = (REWARD, Signal("future", "q_value"))
#: New rows that come out apart, and kernels that take rows in pairs.
APART = {"cache_form": engine_io.READ_ONLY}
PAIRED = ({**APART, "pairs_rows": True}, {"pairs_rows": True}, {"pairs_rows": True, "step": 4})


def step_of(engine: Engine, cache: object, ids: list[list[int]], tree: np.ndarray) -> Step:
    lengths = cache.lengths  # type: ignore[attr-defined]
    positions = lengths[:, None] + np.arange(len(ids[0]))
    return engine.forward(cache, np.array(ids), positions, tree, len(ids[0]))  # type: ignore[arg-type]


def equal(a: Step, b: Step) -> bool:
    names = a.signals.keys() == b.signals.keys()
    same = all(np.array_equal(a.signals[n], b.signals[n]) for n in a.signals)
    return names and same and np.array_equal(a.logits, b.logits)


@settings(max_examples=60)
@given(data=st.data())
def test_any_sequence_of_operations_equals_the_oracle(data: st.DataObject) -> None:
    """Random trees, commits, joining and leaving; steps that run in parts; steps kept for later."""
    limits: dict[str, Any] = data.draw(
        st.sampled_from(
            [
                *({}, {"step": 3}, {"kept": 2}, {"step": 4, "kept": 3, "capacity": 150}),
                *(APART, *PAIRED),
            ]
        )
    )
    engine, fake, _ = make_engine(make_manifest(signals=SIGNALS), **limits)
    ours, theirs = engine.new_cache(2), fake.new_cache(2)
    for _ in range(data.draw(st.integers(1, 8))):
        batch = len(ours.lengths)
        action = data.draw(st.sampled_from(["step", "step", "step", "append", "select"]))
        if action == "append":
            lengths = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
            prompts = [[data.draw(st.integers(1, 9)) for _ in range(n)] for n in lengths]
            picked = data.draw(st.permutations(range(len(prompts))))
            made, expected = prefill(engine, prompts)[0], prefill(fake, prompts)[0]
            engine.append(ours, [(made, b) for b in picked])
            theirs.rows += [list(expected.rows[b]) for b in picked]  # type: ignore[attr-defined]
        elif action == "select":
            order = data.draw(st.permutations(range(batch)))
            order = order[: data.draw(st.integers(1, batch))]
            engine.select(ours, order)
            theirs.rows = [theirs.rows[b] for b in order]
        else:
            width = data.draw(st.integers(1, 5))
            ids = [[data.draw(st.integers(1, 9)) for _ in range(width)] for _ in range(batch)]
            below = data.draw(st.lists(st.booleans(), min_size=width**2, max_size=width**2))
            tree = np.tril(np.array(below).reshape(width, width), -1) | np.eye(width, dtype=bool)
            tree = np.broadcast_to(tree, (batch, width, width))
            found, wanted = (step_of(e, c, ids, tree) for e, c in ((engine, ours), (fake, theirs)))
            assert equal(found, wanted)
            if data.draw(st.booleans()):
                # Another step on the same prefix must not disturb the first.
                other = [[7] * batch][0]
                step_of(
                    engine,
                    ours,
                    [[t, 3] for t in other],
                    np.tri(2, dtype=bool)[None].repeat(batch, 0),
                )
            rows = [
                data.draw(st.lists(st.integers(0, width - 1), max_size=3, unique=True))
                for _ in range(batch)
            ]
            engine.commit(ours, found, rows)
            fake.commit(theirs, wanted, rows)
        assert ours.lengths.tolist() == theirs.lengths.tolist()


@pytest.mark.parametrize(
    "limits",
    [
        *({}, {"step": 7}, {"kept": 3}, {"step": 5, "kept": 2, "capacity": 140, "batch": 4}),
        *(APART, *PAIRED),
    ],
)
def test_generation_equals_the_oracle(limits: dict[str, Any]) -> None:
    manifest = make_manifest(signals=SIGNALS, max_sequence_length=64)
    engine, fake, executor = make_engine(manifest, **limits)
    methods = [
        ArgsGreedy(top_k=6, weight=3.0),
        ArgsGreedy(top_k=9, weight=-2.0, prune=False),
        ArgsStochastic(top_k=6, weight=2.0, signal="reward"),
        ArgsGreedy(top_k=5, signal="future"),
        Plain(),
        Plain(temperature=1.0, signal="future"),
    ]
    requests = [
        Request([5 + i] * (1 + 7 * i), method, max_tokens=5 + 9 * (i % 3), seed=i)
        for i, method in enumerate(methods)
    ]
    found, wanted = (generate(e, requests, batch_size=3) for e in (engine, fake))
    for ours, theirs in zip(found, wanted, strict=True):
        assert dataclasses.replace(ours, seconds=0) == dataclasses.replace(theirs, seconds=0)
    assert max(s for _, s, _ in executor.shapes) <= limits.get("step", 256)
    assert max(k for _, _, k in executor.shapes) <= limits.get("kept", 256)


def test_a_step_stays_committable_while_it_is_held_only() -> None:
    """Rows are saved for whoever holds a step; a step that nobody holds costs nothing."""
    engine, _, executor = make_engine()
    made: list[tuple[int, int]] = []
    blocks = executor.blocks

    def counted(places: int, slots: int, *, zeroed: bool = True) -> Any:
        made.append((places, slots))
        return blocks(places, slots, zeroed=zeroed)

    executor.blocks = counted  # type: ignore[method-assign]
    cache, _ = prefill(engine, [[1, 2, 3]])
    one = np.ones((1, 1, 1), bool)
    made.clear()
    step_of(engine, cache, [[4]], one)
    step_of(engine, cache, [[5]], one)
    assert made == []
    held = step_of(engine, cache, [[6]], one)
    step_of(engine, cache, [[7]], one)
    assert made == [(1, 1)]
    engine.commit(cache, held, [[0]])
    assert cache.lengths.tolist() == [4]


def test_memory_grows_by_a_quarter_up_to_the_batch_limit() -> None:
    engine, _, _ = make_engine(batch=9)
    cache = engine.new_cache(0)
    places = []
    for _ in range(9):
        engine.append(cache, [(prefill(engine, [[1]])[0], 0)])
        places.append(cache.places)
    assert places == [1, 2, 3, 5, 5, 7, 7, 9, 9]
    with pytest.raises(
        EngineError, match=r"would have 10 sequences; the engine takes 9.*--max-batch"
    ):
        engine.append(cache, [(prefill(engine, [[1]])[0], 0)])
    with pytest.raises(EngineError, match="would have 10 sequences"):
        engine.new_cache(10)


def test_slots_of_a_sequence_that_left_are_cleared_for_the_next() -> None:
    """What it wrote may be NaN, and 0 * NaN is NaN even under a mask."""
    engine, _, _ = make_engine()
    cache, _ = prefill(engine, [[1, 2, 3], [4, 5, 6]])
    for block in cache.blocks:  # type: ignore[attr-defined]
        block.array[:, 1] = 99
    engine.select(cache, [0])
    engine.append(cache, [(prefill(engine, [[7]])[0], 0)])
    for block in cache.blocks:  # type: ignore[attr-defined]
        assert not block.array[:, 1, :, 1:].any()
        block.array[:, 0, :, 3:] = 99
    engine.select(cache, [1])
    for block in cache.blocks:  # type: ignore[attr-defined]
        assert not block.array[:, 0, :, 1:].any()


def test_what_is_refused() -> None:
    engine, _, _ = make_engine(capacity=20)
    cache, step = prefill(engine, [[1, 2]])
    with pytest.raises(EngineError, match="committed once"):
        engine.commit(cache, step, [[0]])
    with pytest.raises(EngineError, match="no sequence 1"):
        engine.select(cache, [1])
    with pytest.raises(EngineError, match="no sequence -1"):
        engine.append(engine.new_cache(0), [(cache, -1)])
    with pytest.raises(EngineError, match="selected once"):
        engine.select(cache, [0, 0])
    with pytest.raises(EngineError, match="from itself"):
        engine.append(cache, [(cache, 0)])
    with pytest.raises(EngineError, match="0 or more"):
        engine.new_cache(-1)
    with pytest.raises(EngineError, match="not made by this engine: KVCache"):
        engine.select(make_engine()[0].new_cache(1), [0])
    with pytest.raises(EngineError, match="not made by this engine"):
        engine.select(object(), [])  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"25 tokens do not fit: .* 20 slots"):
        step_of(engine, cache, [[1] * 23], np.eye(23, dtype=bool)[None])
    with pytest.raises(EngineError, match="at least 1 sequence"):
        engine.forward(
            engine.new_cache(0),
            np.zeros((0, 1), np.int64),
            np.zeros((0, 1), np.int64),
            np.zeros((0, 1, 1), np.bool_),
            1,
        )
