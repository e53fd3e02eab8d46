"""L2: every base with the upper half of a channel, its attention shared: both cache forms.

A step of candidates behind prompts of several lengths, past windows too, equals the torch reference
on each sequence as a whole. Other shapes are tested on single bases (tests/converters).
"""

from __future__ import annotations

import numpy as np
import pytest

from otter_export import load_engine
from otter_export.checkpoint import Checkpoint
from otter_export.modeling.otter_model import load_reference
from tests import built
from tests.families import cells
from tests.families.made import LENGTH, Made, prompts
from tests.runtime.executors import graphs
from tests.tree_steps import candidates

TOKENS = [5, 9, 77]


@pytest.fixture(scope="module")
def half(made: Made) -> Checkpoint:
    """The channel begins in the middle and has no queries and keys; every tensor is random."""
    layers = made.checkpoint.base.dimensions.num_hidden_layers
    made.insert("half", first_layer=layers // 2, attention="shared")
    built.randomize(made.root / "half", gain=0.5)
    return Checkpoint.open(made.root / "half")


def test_upper_half_with_shared_attention(made: Made, half: Checkpoint) -> None:
    shaped = Made(made.case, made.root / "shaped")
    shaped.__dict__ |= {"checkpoint": half, "reference": load_reference(half)}
    wanted = [shaped.torch_outputs([[*p, token] for token in TOKENS]) for p in prompts()[1:]]
    expected = {name: np.stack([outputs[name][:, -1] for outputs in wanted]) for name in wanted[0]}
    onnx = built.build(half, made.root / "half-onnx", max_sequence_length=LENGTH)
    for engine in (
        load_engine(onnx, threads=1),
        graphs.in_place_engine(half, made.root / "half-trt", "f32"),
    ):
        step = candidates(engine, prompts()[1:], TOKENS)
        found = {"logits": step.logits, **step.signals}
        for name, values in expected.items():
            assert built.relative(found[name], values) < cells.FP32, name
