"""L3: SmolLM2-135M with the shipped reward channel: the float16 file that TensorRT parses.

Against torch in float32. 2e-2 of the largest magnitude is the bound; 1.3e-3 for logits and 1.1e-3
for rewards were measured, and no other choice of token.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from otter_export.checkpoint import Checkpoint
from otter_export.graph.pipeline import lower, tensorrt
from otter_export.modeling.otter_model import load_reference
from otter_export.runtime.tokenizer import JsonTokenizer
from tests import built, smollm2
from tests.graph.in_place import InPlaceGraph

PROMPTS = (
    "The film was a triumph from its first scene to its last.",
    "I wanted to like this phone, but the battery",
)
HALF = 2e-2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return smollm2.shipped_checkpoint(tmp_path_factory.mktemp("shipped") / "checkpoint")


@pytest.fixture(scope="module")
def graph(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> InPlaceGraph:
    model = lower(checkpoint, tensorrt(64), "fp16")
    return InPlaceGraph.of(model, tmp_path_factory.mktemp("graph"))


@pytest.fixture(scope="module")
def prompts(checkpoint: Checkpoint) -> list[Any]:
    tokenizer = JsonTokenizer(Path(checkpoint.base.directory) / "tokenizer.json")
    return [np.array([tokenizer.encode(prompt)]) for prompt in PROMPTS]


@pytest.mark.slow
def test_float16_file_equals_the_float32_reference(
    checkpoint: Checkpoint, graph: InPlaceGraph, prompts: list[Any]
) -> None:
    reference = load_reference(checkpoint)
    for ids in prompts:
        found, _ = graph(ids)
        with torch.no_grad():
            expected = reference(torch.from_numpy(ids))
        logits, reward = expected.logits.numpy(), expected.signals["reward"].numpy()
        assert built.relative(found["logits"], logits) < HALF
        assert built.relative(found["reward"], reward) < HALF
        np.testing.assert_array_equal(found["logits"].argmax(-1), logits.argmax(-1))


@pytest.mark.slow
def test_candidates_of_one_step_equal_separate_forwards(
    graph: InPlaceGraph, prompts: list[Any]
) -> None:
    """Products of eight rows and of one sum in another order, 30 layers deep."""
    ids, k = prompts[0], 8
    outputs, caches = graph(ids)
    candidates = np.argsort(-outputs["logits"][0, -1])[None, :k]
    tree, depths = np.eye(k, dtype=bool)[None], np.zeros((1, k), int)
    found, _ = graph(candidates, caches, np.array([ids.shape[1]]), tree=tree, depths=depths)
    for i in range(k):
        alone, _ = graph(np.append(ids[0], candidates[0, i])[None])
        for name in ("logits", "reward"):
            assert built.relative(found[name][0, i], alone[name][0, -1]) < HALF / 4, name
        assert found["logits"][0, i].argmax() == alone["logits"][0, -1].argmax()


@pytest.mark.slow
def test_the_file_holds_every_weight_once(checkpoint: Checkpoint, graph: InPlaceGraph) -> None:
    """Half of float32's bytes: the tied embedding is not stored again for the head."""
    stored = sum(v.const_value.nbytes for v in graph.model.graph.initializers.values())  # type: ignore[union-attr]
    tensors = [*checkpoint.base.weights.values(), *checkpoint.tensors.values()]
    parameters = sum(int(np.prod(info.shape)) for info in tensors)
    rotary = 2 * checkpoint.base.dimensions.max_position_embeddings * 32
    assert stored <= 2 * (parameters + rotary) + 10_000
