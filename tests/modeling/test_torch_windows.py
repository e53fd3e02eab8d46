"""L2: windows and soft caps in torch: steps equal the ONNX engine's past the window.

Prompts are longer than the windows of 8, and run in parts of 16 that are longer, too.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from otter_export import ArgsGreedy, Plain, Request, generate
from otter_export.modeling.masks import layer_masks
from otter_export.runtime.prefill import prefill
from tests import built, tiny
from tests.families import bases
from tests.modeling.torch_pairs import TOLERANCE, Pair, close, make_pair
from tests.tree_steps import assert_equal_to_separate_forwards, candidates, ids

#: A window in all layers, in the last, in every other with and without soft caps and rotation.
CASES = ("mistral-window", "qwen2-window", "gemma2", "gemma3", "cohere2", "smollm3")


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    case = next(case for case in bases.CASES if case.name == request.param)
    root = tmp_path_factory.mktemp(case.name)
    base = bases.write_base(case, root / "base")
    signals = (tiny.REWARD, tiny.NEXT)
    # Bases of four layers: with full gains differences of sums would grow as well.
    checkpoint = built.checkpoint_over(base, root / "ck", gain=0.5, signals=signals)
    return make_pair(checkpoint, root / "onnx")


def test_steps_equal_the_onnx_engine(pair: Pair) -> None:
    prompts = [*ids(1, 40), *ids(1, 5, 1), *ids(1, 23, 2)]
    found, expected = (candidates(e, prompts, [5, 9, 77]) for e in (pair.torch, pair.onnx))
    close(found, expected, TOLERANCE["fp32"])


def test_a_tree_step_equals_separate_forwards(pair: Pair) -> None:
    for engine in (pair.torch, pair.onnx):
        assert_equal_to_separate_forwards(engine)


def test_a_deep_tree_has_windows_by_position(pair: Pair) -> None:
    """Behind three candidates a path of ten: its rows lie three slots, not positions, later."""
    parents = [-1, -1, -1, *range(2, 12)]
    tree = np.eye(len(parents), dtype=np.bool_)
    for row, parent in enumerate(parents[3:], 3):
        tree[row] |= tree[parent]
    tokens = ids(1, len(parents), 5)
    steps = []
    for engine in (pair.torch, pair.onnx):
        cache, _ = prefill(engine, ids(1, 11))
        positions = cache.lengths[:, None] + tree.sum(-1)[None] - 1
        steps.append(engine.forward(cache, np.array(tokens), positions, tree[None], len(parents)))
    close(*steps, TOLERANCE["fp32"])
    _, path = prefill(pair.torch, [[*ids(1, 11)[0], *np.array(tokens)[0, 2:].tolist()]])
    np.testing.assert_allclose(steps[0].logits[0, -1], path.logits[0, 0], atol=1e-4)


def test_generation_equals_the_onnx_engine(pair: Pair) -> None:
    methods = [ArgsGreedy(top_k=6, weight=3.0), Plain(temperature=1.0)]
    requests = [
        Request(ids(1, 6 + 22 * i, i)[0], method, max_tokens=20, seed=i)
        for i, method in enumerate(methods)
    ]
    found, expected = (generate(e, requests, batch_size=2) for e in (pair.torch, pair.onnx))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.token_ids == theirs.token_ids
        np.testing.assert_allclose(ours.rewards, theirs.rewards, atol=2e-5)


@pytest.mark.parametrize("pair", ["mistral-window", "gemma2"], indirect=True)
def test_the_window_shows(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the same comparison fails: the tests above can."""
    prompts = ids(1, 40)
    expected = candidates(pair.torch, prompts, [5, 9])
    near = lambda model, mask, _, dtype: layer_masks(  # noqa: E731
        model, mask, lambda: torch.zeros((), dtype=torch.int64), dtype
    )
    monkeypatch.setattr("otter_export.modeling.torch_step.layer_masks", near)
    found = candidates(pair.torch, prompts, [5, 9])
    assert built.relative(found.logits, expected.logits) > 1e-3
