"""L0: which objectives train which kinds of signals."""

from __future__ import annotations

from pathlib import Path

import pytest

from otter_export.checkpoint import Checkpoint
from otter_export.errors import UnsupportedError
from otter_export.modeling.data import FORMATS
from otter_export.modeling.objectives import OBJECTIVES, check_objective, objective_for
from otter_export.modeling.objectives.pairwise import Pairwise
from otter_export.modeling.training_config import TrainingConfig
from otter_export.signals import SIGNALS, Signal
from tests import tiny


def test_every_objective_has_data_and_a_kind_that_it_trains() -> None:
    named = {name for kind in SIGNALS for name in SIGNALS.load(kind).objectives}
    assert named == set(OBJECTIVES) == set(FORMATS)
    assert all(SIGNALS.load(kind).objectives for kind in SIGNALS)


def test_other_pairings_are_refused_with_those_that_are_accepted() -> None:
    drafts = Signal("ahead", "medusa", "identity", None, 2)
    with pytest.raises(UnsupportedError, match="'ahead', which is of kind 'medusa'; accepted: dra"):
        check_objective("regression", drafts)
    with pytest.raises(UnsupportedError, match="accepted: regression, pairwise"):
        check_objective("distill", tiny.REWARD)
    with pytest.raises(
        UnsupportedError, match=r"unknown objective 'ranking'.*; known: regression, "
    ):
        check_objective("ranking", tiny.REWARD)


def test_the_scale_of_pairs_follows_the_bounds(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny.write_checkpoint(tmp_path / "ck"))
    config = TrainingConfig()
    assert objective_for("pairwise", checkpoint, config, tiny.REWARD) == Pairwise(tiny.REWARD, 3.0)
    unbounded = Signal("reward", "value", "identity", None)
    assert objective_for("pairwise", checkpoint, config, unbounded) == Pairwise(unbounded, 1.0)
