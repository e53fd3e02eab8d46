"""L3: the shipped sentiment channel on the real base: what the recipe says it is, and good."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from examples.sentiment import material, recipe
from otter_export import reshape
from otter_export.channel import expected_tensors
from otter_export.checkpoint import Checkpoint
from otter_export.modeling.data import Reader, batches
from otter_export.modeling.objectives.objective import joined
from otter_export.modeling.objectives.rewards import pearson, prefix_rewards
from otter_export.modeling.otter_model import load_base, load_reference
from otter_export.modeling.tokenization import end_token_id, load_tokenizer
from otter_export.safetensors_io import read_header
from tests import smollm2

#: Enough for a standard error of 0.03 in the correlation, and no more than half a minute.
SNIPPETS = 160


@pytest.fixture(scope="module")
def prepared() -> material.Material:
    return smollm2.prepared()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return smollm2.shipped_checkpoint(tmp_path_factory.mktemp("shipped") / "checkpoint")


def test_it_is_small_and_float16() -> None:
    assert recipe.SHIPPED.stat().st_size < 5_000_000
    assert {info.dtype for info in read_header(recipe.SHIPPED).values()} == {"F16"}


@pytest.mark.slow
def test_it_holds_exactly_what_the_recipe_trains(checkpoint: Checkpoint) -> None:
    expected = expected_tensors(checkpoint.config, checkpoint.base)
    trained = {name for name in expected if re.search(recipe.TRAINABLE, name)}
    assert set(read_header(recipe.SHIPPED)) == trained


@pytest.mark.slow
def test_it_is_all_that_a_channel_from_the_embeddings_needs(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """The same tensors over copies of every layer are reshaped to the channel that is shipped."""
    whole = smollm2.shipped_checkpoint(tmp_path / "whole", first_layer=0, attention="own")
    reshape.plan(whole, tmp_path / "reshaped").write()
    found = Checkpoint.open(tmp_path / "reshaped")
    assert found.config.first_layer == checkpoint.config.first_layer == 14
    assert found.config.attention == checkpoint.config.attention == "shared"
    assert list(found.tensors) == list(checkpoint.tensors)
    for name in found.tensors:
        assert found.tensors.raw(name).tobytes() == checkpoint.tensors.raw(name).tobytes()
    ids = torch.tensor([load_tokenizer(found.base.directory).encode("A slow, moving film about")])
    with torch.no_grad():
        rewards = [load_reference(c)(ids).signals["reward"] for c in (whole, found)]
    # float32, summed in another order over 14 layers; the rewards spread by some 0.1.
    torch.testing.assert_close(rewards[0], rewards[1], rtol=0, atol=1e-4)


@pytest.mark.slow
def test_it_agrees_with_people_on_held_out_snippets(
    checkpoint: Checkpoint, prepared: material.Material
) -> None:
    base = checkpoint.base
    signal = checkpoint.config.signals[0]
    reader = Reader("regression", signal, load_tokenizer(base.directory), end_token_id(base))
    items = reader.read(prepared.test)[:SNIPPETS]
    trained = {json.loads(line)["text"].strip() for line in prepared.train.open(encoding="utf-8")}
    with prepared.test.open(encoding="utf-8") as file:
        assert all(json.loads(line)["text"] not in trained for line in file)
    model = load_reference(checkpoint)
    parts, scores = [], []
    with torch.no_grad():
        for batch in batches(items, 1024):
            rewards = model(batch.ids, compute_logits=False, use_cache=False).signals["reward"]
            assert rewards.abs().max() <= 1
            parts.append(prefix_rewards(rewards, batch, ends=True))
            scores += batch.scores.tolist()
    correlations = {share: pearson(values, scores) for share, values in joined(parts).items()}
    # 0.82 was measured on all 814 snippets; three standard errors of 160 below that.
    assert correlations["100"] > 0.75
    assert correlations["25"] > 0.3
    assert correlations["25"] < correlations["50"] < correlations["100"]


@pytest.mark.slow
def test_the_base_is_bit_identical(checkpoint: Checkpoint, tmp_path: Path) -> None:
    model, base = load_reference(checkpoint), load_base(checkpoint.base)
    tokenizer = load_tokenizer(checkpoint.base.directory)
    for text in ("The movie was", "In 1905, a clerk in Bern wrote four papers that changed"):
        ids = torch.tensor([tokenizer.encode(text)])
        with torch.no_grad():
            assert torch.equal(model(ids).logits, base(ids).logits)
