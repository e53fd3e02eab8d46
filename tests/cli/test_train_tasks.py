"""L5: ``train --task`` and ``--also-test`` as a user runs them, on tiny checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from otter_export.checkpoint import Checkpoint
from otter_export.cli.task_option import TaskOption, TaskType
from otter_export.signals import Signal
from tests import tiny
from tests.command_line import Cli

FAST = ("--epochs", "2", "--batch-tokens", "128", "--eval-every", "4", "--learning-rate", "0.01")
AHEAD = Signal("ahead", "medusa", "identity", None, 2)


@pytest.fixture
def data(tmp_path: Path) -> dict[str, str]:
    """Files by objective: what w3 to w9 say is good, what w10 to w16 say is bad."""
    good, bad = (" ".join(f"w{w}" for w in range(at, at + 7)) for at in (3, 10))
    lines: dict[str, list[dict[str, Any]]] = {
        "regression": [{"text": good[:-i], "score": 0.8} for i in range(3, 12)]
        + [{"text": bad[:-i], "score": -0.8} for i in range(3, 12)],
        "experts": [{"text": good, "label": "expert"}, {"text": bad, "label": "anti"}] * 6,
        "drafts": [{"text": f"{good} {bad}"}, {"text": f"{bad} {good}"}] * 6,
    }
    for name, some in lines.items():
        text = "".join(json.dumps(line) + "\n" for line in some)
        (tmp_path / f"{name}.jsonl").write_text(text)
    return {name: str(tmp_path / f"{name}.jsonl") for name in lines}


def write(path: Path, *signals: Signal) -> Path:
    return tiny.write_checkpoint(path, signals=signals, initialization="copy")


def report_of(checkpoint: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((checkpoint / "training_report.json").read_text())
    return report


def test_several_signals_in_one_run(cli: Cli, tmp_path: Path, data: dict[str, str]) -> None:
    checkpoint = write(tmp_path / "ck", tiny.REWARD, tiny.TONE, AHEAD)
    before = {n: Checkpoint.open(checkpoint).tensors.raw(n).tobytes() for n in heads(checkpoint)}
    tasks = [f"reward={data['regression']}", f"tone:experts:0.5={data['experts']}"]
    tasks.append(f"ahead={data['drafts']}")
    options = [part for task in tasks for part in ("--task", task)]
    judged = ("--also-test", f"reward:pairwise={tmp_path / 'pairs.jsonl'}")
    (tmp_path / "pairs.jsonl").write_text('{"chosen": "w3 w4", "rejected": "w12 w11"}\n' * 2)
    found = cli("train", checkpoint, *options, *judged, *FAST)
    assert found.status == 0, found.stderr
    assert "signal     tone (expert, identity), by experts, weight 0.5" in found.stderr
    for line in ("reward before: pearson by prefix", "tone held-out gain (1 items)",
                 "ahead held-out acceptance (1 items)", "signal reward accuracy by prefix (2 items)"):  # fmt: skip  # noqa: E501
        assert line in found.stdout, found.stdout
    report = report_of(checkpoint)
    parts = report["signals"]
    assert {n: (p["objective"], p["weight"], p["metric"]) for n, p in parts.items()} == {
        "reward": ("regression", 1.0, "pearson"),
        "tone": ("experts", 0.5, "gain"),
        "ahead": ("drafts", 1.0, "acceptance"),
    }
    assert report["settings"]["data"] == {
        "reward": "regression.jsonl", "tone": "experts.jsonl", "ahead": "drafts.jsonl"
    }  # fmt: skip
    assert parts["tone"]["items"] == {"train": 11, "held_out": 1}
    for point, *own in zip(
        report["evaluations"], *(p["evaluations"] for p in parts.values()), strict=True
    ):
        weighted = sum(p["weight"] * e["loss"] for p, e in zip(parts.values(), own, strict=True))
        assert point["loss"] == pytest.approx(weighted, rel=1e-9)
    assert report["also_tested"]["reward"]["objective"] == "pairwise"
    assert (checkpoint / "training_curve.png").read_bytes().startswith(b"\x89PNG")
    after = Checkpoint.open(checkpoint).tensors
    assert all(after.raw(name).tobytes() != bits for name, bits in before.items())


def heads(checkpoint: Path) -> list[str]:
    return [n for n in Checkpoint.open(checkpoint).tensors if n.startswith("signals.")]


@pytest.mark.parametrize("freeze", ["channel", "nothing"])
def test_others_are_judged_before_and_after(
    freeze: str, cli: Cli, tmp_path: Path, data: dict[str, str]
) -> None:
    checkpoint = write(tmp_path / "ck", tiny.REWARD, AHEAD)
    watched = ("--also-test", f"ahead={data['drafts']}")
    learned = ("--data", data["regression"], "--eval-data", data["regression"])
    found = cli("train", checkpoint, *learned, *watched, *FAST, "--freeze", freeze)
    assert found.status == 0, found.stderr
    report = report_of(checkpoint)
    ahead = report["also_tested"]["ahead"]
    assert report["signal"] == "reward" and ahead["items"] == 12
    kept = freeze == "channel"
    assert ahead["same"] == kept == (ahead["before"] == ahead["after"])
    said = "before and after, bit for bit" if kept else " after"
    (line,) = [x for x in found.stdout.splitlines() if x.startswith("signal ahead acceptance")]
    assert line.endswith(said), found.stdout


def test_what_is_trained_and_tested_alike_is_named(
    cli: Cli, tmp_path: Path, data: dict[str, str]
) -> None:
    checkpoint = write(tmp_path / "ck", tiny.REWARD)
    path = data["regression"]
    found = cli("train", checkpoint, "--data", path, "--also-test", f"reward={path}", *FAST)
    assert "of 18 also-test items of reward are also trained on" in found.stderr


def test_a_task_is_read_up_to_its_first_equals_sign() -> None:
    convert = TaskType(weighted=True).convert
    assert convert("a=b=c.jsonl", None, None) == TaskOption("a", None, Path("b=c.jsonl"))
    found = convert("a:drafts:0.5=x:y.jsonl", None, None)
    assert found == TaskOption("a", "drafts", Path("x:y.jsonl"), 0.5)
