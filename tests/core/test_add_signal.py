"""L0: a trained channel gets more signals, and what it had keeps its bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from otter_export import add_signal
from otter_export.checkpoint import Checkpoint
from otter_export.errors import CheckpointError, ConfigError, OtterError
from otter_export.signals import Signal
from tests import built, tiny

STYLE = Signal("style", "expert", "identity", None)
AHEAD = Signal("ahead", "medusa", "identity", None, 2, 40)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"checkpoint": "ck"}, r"checkpoint must be what Checkpoint\.open gives, got 'ck'"),
        ({"destination": None}, "destination must be a path"),
        ({"signals": "style"}, "signals must be a tuple of Signal, got 'style'"),
        ({"seed": -1}, "seed must be an integer of at least 0, got -1"),
        ({"force": "yes"}, "force must be true or false, got 'yes'"),
    ],
)
def test_arguments_are_checked(changes: dict[str, object], error: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny.write_checkpoint(tmp_path / "ck"))
    arguments = {"checkpoint": checkpoint, "destination": tmp_path / "out", "signals": [STYLE]}
    with pytest.raises(OtterError, match=error):
        add_signal.plan(**arguments | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("adapter", [False, True])
def test_tensors_that_were_there_keep_their_bits(tmp_path: Path, adapter: bool) -> None:
    path = tiny.write_checkpoint(tmp_path / "ck", adapter=adapter, dtype="BF16")
    built.randomize(path)
    before = Checkpoint.open(path)
    out = tmp_path / "deeper" / "out"
    out.parent.mkdir()
    add_signal.plan(before, out, [AHEAD, tiny.NEXT], seed=3).write()
    after = Checkpoint.open(out)
    assert after.config.signals == (tiny.REWARD, AHEAD, tiny.NEXT)
    for name in before.tensors:
        assert after.tensors[name].dtype == before.tensors[name].dtype
        assert np.array_equal(after.tensors.raw(name), before.tensors.raw(name)), name
    added = set(after.tensors) - set(before.tensors)
    assert added == {f"signals.{n}.{p}" for n in ("ahead", "next") for p in ("weight", "bias")} | {
        "signals.ahead.token_ids"
    }
    assert after.float32("signals.next.weight").std() > 0
    assert after.base.directory.resolve() == (
        before.base.directory.resolve() if adapter else out.resolve()
    )


def test_what_cannot_be_added(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny.write_checkpoint(tmp_path / "ck"))
    with pytest.raises(ConfigError, match="two signals are named 'reward'"):
        add_signal.plan(checkpoint, tmp_path / "out", [Signal("reward", "q_value")])
    with pytest.raises(ConfigError, match="'logits' is reserved"):
        add_signal.plan(checkpoint, tmp_path / "out", [Signal("logits")])
    for force in (True, False):  # no word of --force
        with pytest.raises(CheckpointError, match="holds the checkpoint"):
            add_signal.plan(checkpoint, tmp_path / "ck", [STYLE], force=force)


def test_an_expert_begins_as_no_offset(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny.write_checkpoint(tmp_path / "ck"))
    add_signal.plan(checkpoint, tmp_path / "out", [STYLE]).write()
    assert not Checkpoint.open(tmp_path / "out").float32("signals.style.weight").any()
