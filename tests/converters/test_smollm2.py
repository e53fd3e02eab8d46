"""L3: the real base, SmolLM2-135M-Instruct: fp32 against torch on real prompts, bit-equal logits.

Tolerance: 1e-4 of the largest magnitude; 30 layers of float32 leave about 1e-5.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.sentiment import material
from otter_export.checkpoint import Checkpoint
from otter_export.errors import OtterError
from otter_export.runtime.tokenizer import JsonTokenizer
from tests import built, tiny
from tests.converters.conftest import Built

PROMPTS = (
    "The film was a triumph from its first scene to its last.",
    "I wanted to like this phone, but the battery",
)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Built:
    try:
        base = material.prepare().base
    except OtterError as error:
        pytest.skip(f"the real base is not at hand: {error}")
    root = tmp_path_factory.mktemp("smollm2")
    tiny.write_checkpoint(root / "ck", base=base, adapter=True, signals=(tiny.REWARD,), heads=3)
    built.randomize(root / "ck", gain=0.2)
    return Built.make(root, Checkpoint.open(root / "ck"))


@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS)
def test_engine_equals_torch_and_base_logits_are_unchanged(smollm2: Built, prompt: str) -> None:
    tokenizer = JsonTokenizer(smollm2.engine / "tokenizer.json")
    ids = np.array([tokenizer.encode(prompt)])
    found, expected = smollm2.graph(ids), smollm2.torch(ids)
    for name, values in expected.items():
        assert built.relative(found[name], values) < 1e-4, name
    np.testing.assert_array_equal(found["logits"].argmax(-1), expected["logits"].argmax(-1))
    np.testing.assert_array_equal(found["logits"], smollm2.base(ids)["logits"])


@pytest.mark.slow
def test_the_engine_is_no_larger_than_its_weights(smollm2: Built) -> None:
    """135M parameters in float32, each once: the tied embedding is not stored again."""
    weights = sum(info.nbytes for info in smollm2.checkpoint.base.weights.values())
    channel = sum(info.nbytes for info in smollm2.checkpoint.tensors.values())
    rotary = 2 * 8192 * 32 * 4
    size = (smollm2.engine / Path("model.onnx.data")).stat().st_size
    assert size < weights + channel + rotary + 4096 * 1000
