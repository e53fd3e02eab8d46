"""L2: which mends each base needs, and where they are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from otter_export.base_model import BaseModel
from otter_export.checkpoint import Checkpoint
from otter_export.graph.base import base_graph, mends_of
from otter_export.manifest import EngineManifest
from tests import built, tiny
from tests.families.bases import CASES, Case, write_base

MENDS = {
    **dict.fromkeys(("gemma", "gemma2"), ("embedding_scale",)),
    "gemma3": ("attention_scale", "embedding_scale"),
    "exaone4": ("unrotated_layers",),
    **dict.fromkeys(("glm", "glm4", "seed_oss"), ("phantom_biases",)),
    **dict.fromkeys(("cohere", "helium", "ernie4_5"), ("interleaved_rotation",)),
    "cohere2": ("interleaved_rotation", "unrotated_layers"),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_base_has_the_mends_it_needs(case: Case, tmp_path: Path) -> None:
    base = BaseModel.open(write_base(case, tmp_path))
    assert mends_of(base_graph(base)) == MENDS.get(case.name, ())


def test_a_built_engine_names_them(tmp_path: Path) -> None:
    case = Case("llama", "llama", {"mlp_bias": True})
    base = write_base(case, tmp_path / "base")
    checkpoint = Checkpoint.open(tiny.write_checkpoint(tmp_path / "ck", base=base, heads=2))
    engine = built.build(checkpoint, tmp_path / "engine")
    assert EngineManifest.load(engine).mends == ("missing_biases",)
