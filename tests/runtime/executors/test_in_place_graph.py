"""L2: the graph that TensorRT is given, driven in place by ONNX Runtime, equals the onnx engine.

Tolerances, in units of the largest value: 2e-5 in fp32, where the same numbers are summed in
another order; 2e-2 in fp16, whose rounding is 5e-4 for each of some dozens of operations.
"""

from __future__ import annotations

import numpy as np
import pytest

from otter_export import ArgsGreedy, ArgsStochastic, Plain, Request, generate, score
from otter_export.runtime.engine import Step
from otter_export.runtime.prefill import prefill
from tests import built, tiny
from tests.runtime.executors.graphs import MAX_LENGTH, Pair, tiny_pair
from tests.tree_steps import assert_equal_to_separate_forwards, candidates, ids

TOLERANCE = {"f32": 2e-5, "f16": 2e-2}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return {
        family: tiny_pair(tmp_path_factory.mktemp(family), family, i, "f32")
        for i, family in enumerate(tiny.CONFIGS)
    }


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return tiny_pair(tmp_path_factory.mktemp("half"), "llama", 0, "f16")


def close(found: Step, expected: Step, tolerance: float) -> None:
    assert built.relative(found.logits, expected.logits) < tolerance
    for name, values in expected.signals.items():
        assert found.signals[name].shape == values.shape
        # Rewards and q-values are bounded by tanh: in units of 1.
        assert np.abs(found.signals[name] - values).max() < tolerance


@pytest.mark.parametrize("family", list(tiny.CONFIGS))
def test_steps_equal_the_onnx_engine(family: str, pairs: dict[str, Pair]) -> None:
    """Prompts of 40 tokens run in three parts; the shorter ones of the batch are padded."""
    pair = pairs[family]
    prompts = [*ids(1, 40), *ids(1, 7, 1), *ids(1, 23, 2)]
    found, expected = (candidates(e, prompts, [5, 9, 77]) for e in (pair.in_place, pair.onnx))
    close(found, expected, TOLERANCE["f32"])


def test_texts_are_scored_in_more_passes(pairs: dict[str, Pair]) -> None:
    """The engine gives 8 rows a pass; texts of 40 tokens need five, and the last row of each."""
    pair = pairs["llama"]
    texts = [*ids(1, 40), *ids(1, 7, 1), *ids(1, 23, 2)]
    found, expected = (list(score(engine, texts)) for engine in (pair.in_place, pair.onnx))
    for one, other in zip(found, expected, strict=True):
        for name in ("reward", "next"):
            values = zip(one.signals[name], other.signals[name], strict=True)
            pairs_of = [(a, b) for a, b in values if a is not None and b is not None]
            assert len(pairs_of) == len(one.token_ids) - (name == "next")
            assert max(abs(a - b) for a, b in pairs_of) < TOLERANCE["f32"]


@pytest.mark.parametrize("family", list(tiny.CONFIGS))
def test_a_tree_step_equals_separate_forwards(family: str, pairs: dict[str, Pair]) -> None:
    assert_equal_to_separate_forwards(pairs[family].in_place)


def requests(max_tokens: int) -> list[Request]:
    methods = [
        ArgsGreedy(top_k=6, weight=3.0),
        ArgsGreedy(top_k=8, weight=2.0, prune=False),
        ArgsStochastic(top_k=6, weight=2.0),
        ArgsGreedy(top_k=5, signal="next"),
        Plain(temperature=1.0),
        ArgsGreedy(top_k=6, weight=3.0, gate=3.7),
    ]
    return [
        Request(ids(1, 4 + 9 * i, i)[0], method, max_tokens=max_tokens, seed=i)
        for i, method in enumerate(methods)
    ]


@pytest.mark.parametrize("family", list(tiny.CONFIGS))
def test_generation_equals_the_onnx_engine(family: str, pairs: dict[str, Pair]) -> None:
    """The same tokens; sequences join and leave a batch of three, some run to the limit."""
    pair = pairs[family]
    found, expected = (generate(e, requests(50), batch_size=3) for e in (pair.in_place, pair.onnx))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.finish_reason == theirs.finish_reason
        np.testing.assert_allclose(ours.rewards, theirs.rewards, atol=2e-5)
    assert any(len(r.prompt_ids) + len(r.token_ids) == MAX_LENGTH for r in found)


def test_more_candidates_than_the_engine_takes_run_in_parts(pairs: dict[str, Pair]) -> None:
    pair, tokens = pairs["llama"], list(range(3, 3 + 20))
    found, expected = (candidates(e, ids(1, 30), tokens) for e in (pair.in_place, pair.onnx))
    close(found, expected, TOLERANCE["f32"])


def test_half_precision_steps_are_near_the_onnx_engine(half: Pair) -> None:
    prompts = [*ids(1, 40), *ids(1, 7, 1)]
    found, expected = (candidates(e, prompts, [5, 9, 77]) for e in (half.in_place, half.onnx))
    close(found, expected, TOLERANCE["f16"])


def test_half_precision_caches_are_updated_in_place(half: Pair) -> None:
    """Rows of a committed prefix stay as they are, bit for bit, and new ones appear behind."""
    cache, _ = prefill(half.in_place, ids(1, 5))
    for block in cache.blocks:  # type: ignore[attr-defined]
        block.array[:, :, :, 5:] = 0
    before = [block.array.copy() for block in cache.blocks]  # type: ignore[attr-defined]
    tree = np.eye(3, dtype=np.bool_)[None]
    half.in_place.forward(cache, np.array([[4, 5, 6]]), np.full((1, 3), 5), tree, 3)
    for block, old in zip(cache.blocks, before, strict=True):  # type: ignore[attr-defined]
        assert block.array.dtype == np.float16
        assert np.array_equal(block.array[:, :, :, :5], old[:, :, :, :5])
        assert block.array[:, :, :, 5:8].any() and not block.array[:, :, :, 8:].any()
