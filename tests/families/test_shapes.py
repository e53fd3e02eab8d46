"""L2: channels of other shapes in every base: begun inside it, sharing its attention, or a probe.

Tolerance: the same numbers summed in another order, float32, in units of the largest value.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from otter_export import reshape
from otter_export.base_model import BaseModel
from otter_export.channel import expected_tensors
from otter_export.checkpoint import Checkpoint
from otter_export.family import Space
from otter_export.initialization import copied_rows, initial_tensors
from otter_export.modeling.otter_model import OtterModel, load_reference
from tests import built
from tests.families.made import Made, prompts
from tests.families.selections import EVERY_MODEL_TYPE

pytestmark = EVERY_MODEL_TYPE

FP32 = 2e-5


def ids() -> torch.Tensor:
    return torch.tensor([prompts()[-1], prompts()[-1][::-1]])


def final_state(model: OtterModel) -> torch.Tensor:
    with torch.no_grad():
        state: torch.Tensor = model.base.base_model(ids()).last_hidden_state
    return state


@pytest.mark.parametrize("shape", ["inside", "probe"])
def test_a_copied_channel_follows_the_base_and_leaves_it_alone(made: Made, shape: str) -> None:
    layers = BaseModel.open(made.base).dimensions.num_hidden_layers
    first_layer = {"inside": layers - 1, "probe": layers}[shape]
    options = {"initialization": "copy", "first_layer": first_layer, "attention": "shared"}
    checkpoint = made.insert(shape, **options)
    model, d = load_reference(checkpoint), checkpoint.base.dimensions.hidden_size
    with torch.no_grad():
        assert torch.equal(model(ids()).logits, made.hugging_face(ids()).logits)
    state = final_state(model).numpy()
    copied = copied_rows(checkpoint.config, checkpoint.base, Space.HIDDEN)
    assert built.relative(state[..., d:], state[..., :d][..., copied]) < FP32


def test_shared_attention_is_one_of_its_own_that_copies_the_base_s(made: Made) -> None:
    """The same random channel twice; once with queries and keys that equal those of base heads."""
    own = made.insert("own", first_layer=1)
    built.randomize(own.directory, gain=0.5)
    use_the_base_s_attention(own.directory)
    shared = made.insert("shared", first_layer=1, attention="shared")
    tensors = load_file(own.directory / "otter.safetensors")
    kept = {name: tensors[name] for name in shared.tensors}
    assert len(kept) < len(tensors)
    save_file(kept, shared.directory / "otter.safetensors", {"format": "pt"})
    with torch.no_grad():
        outputs = [load_reference(Checkpoint.open(c.directory))(ids()) for c in (own, shared)]
        expected = made.hugging_face(ids()).logits
    for output in outputs:
        assert torch.equal(output.logits, expected)
    for name, values in outputs[0].signals.items():
        assert built.relative(outputs[1].signals[name].numpy(), values.numpy()) < FP32
    assert outputs[0].signals["reward"].std() > 1e-3, "a constant reward would prove nothing"


def test_a_channel_that_was_partly_trained_is_reshaped_exactly(made: Made) -> None:
    """All of layers 1 and on is changed, but for queries and keys."""
    copied = made.insert("copied", initialization="copy")
    path, generator = copied.directory / "otter.safetensors", np.random.default_rng(0)
    tensors = load_file(path)
    shape = dataclasses.replace(copied.config, first_layer=1, attention="shared")
    kept = expected_tensors(shape, copied.base)
    for name in tensors:
        if name in kept:
            noise = generator.standard_normal(tensors[name].shape).astype(np.float32)
            tensors[name] = tensors[name] + 0.3 * noise * tensors[name].shape[-1] ** -0.5
    save_file(tensors, path, {"format": "pt"})
    before = Checkpoint.open(copied.directory)
    reshape.plan(before, made.root / "reshaped").write()
    after = Checkpoint.open(made.root / "reshaped")
    assert (after.config.first_layer, after.config.attention) == (1, "shared")
    with torch.no_grad():
        expected, found = (load_reference(c)(ids()).signals for c in (before, after))
    for name, values in expected.items():
        assert built.relative(found[name].numpy(), values.numpy()) < FP32


def use_the_base_s_attention(directory: Path) -> None:
    """Let a channel's queries and keys, and their norms, be copies."""
    checkpoint, path = Checkpoint.open(directory), directory / "otter.safetensors"
    config = dataclasses.replace(checkpoint.config, initialization="copy")
    copies = {name: make for name, _, make in initial_tensors(config, checkpoint.base)}
    sites, tensors = checkpoint.base.sites, load_file(path)
    spaces = {site.name: site.writes for site in sites.projections}
    spaces |= {norm.name: norm.space for norm in sites.norms}
    for name in tensors:
        if spaces.get(name.partition(".otter.")[0]) in (Space.QUERY, Space.KEY):
            tensors[name] = np.ascontiguousarray(copies[name]())
    save_file(tensors, path, {"format": "pt"})
