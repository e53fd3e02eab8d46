"""L2: a channel initialised as a probe is a linear map of the base's final state, in every base."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from otter_export.base_model import BaseModel
from otter_export.modeling.otter_model import load_reference
from otter_export.probe import orthonormal
from tests import built
from tests.families.made import CHANNEL, Made, prompts
from tests.families.selections import EVERY_MODEL_TYPE

pytestmark = EVERY_MODEL_TYPE

#: The same numbers summed in another order, through some dozens of float32 operations.
FP32 = 5e-5


@pytest.mark.parametrize("first_layer", ["embeddings", "table", "inside", "probe"])
def test_the_channel_is_a_map_of_the_final_state(made: Made, first_layer: str) -> None:
    base = BaseModel.open(made.base)
    layers, d = base.dimensions.num_hidden_layers, base.dimensions.hidden_size
    first = {"inside": layers - 1, "probe": layers}.get(first_layer, 0)
    embedding = "table" if first_layer == "table" else "projection"
    checkpoint = made.insert(
        f"map-{first_layer}", initialization="probe", first_layer=first, embedding=embedding
    )
    ids = torch.tensor([prompts()[-1], prompts()[-1][::-1]])
    with torch.no_grad():
        output = load_reference(checkpoint)(ids)
        assert torch.equal(output.logits, made.hugging_face(ids).logits)
        state = made.hugging_face.base_model(ids).last_hidden_state.numpy()
    rows = orthonormal(np.zeros((0, d)), CHANNEL["hidden_size"], 0)
    assert built.relative(output.channel.numpy(), state @ rows.T) < FP32
