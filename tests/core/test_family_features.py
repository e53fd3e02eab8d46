"""L0: the features of a family, in words."""

from __future__ import annotations

import dataclasses

import pytest

from otter_export.families import FAMILIES
from otter_export.family import Rotation
from otter_export.family_features import features


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("llama", ()),
        ("gpt2", ("LayerNorm", "learned positions", "fused projections", "no gate")),
        ("qwen3", ("a norm of each head", "windows")),
        ("olmo2", ("a norm over all heads",)),
        ("gemma2", ("weights of norms plus 1", "windows", "soft caps", "scaled embedding")),
        ("granite", ("scales",)),
        ("glm", ("neighbours rotated", "part of a head rotated", "fused projections")),
        ("smollm3", ("windows", "layers without rotation")),
    ],
)
def test_features_of_a_family(family: str, expected: tuple[str, ...]) -> None:
    assert features(FAMILIES.load(family)) == expected


def test_features_follow_the_table() -> None:
    llama = FAMILIES.load("llama")
    changed = dataclasses.replace(llama, layer_norm=True, rotation=Rotation.WINDOWED)
    assert features(changed) == ("LayerNorm", "layers without rotation")
