"""L5: ``otter-export train`` as a user runs it, on tiny checkpoints."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from otter_export.checkpoint import Checkpoint
from otter_export.cli.main import main
from otter_export.files import exclusive
from otter_export.safetensors_io import TensorStore
from tests import tiny

#: A tokenizer's model that gives every word an id beyond the embedding.
UNKNOWN_ONLY = {"type": "WordLevel", "vocab": {"<unk>": 900}, "unk_token": "<unk>"}
FAST = ["--epochs", "2", "--batch-tokens", "128", "--eval-every", "4", "--learning-rate", "0.01"]


def write_lines(path: Path, count: int = 120, seed: int = 0) -> Path:
    """Texts of good words (w3 to w9) score 0.8, of bad ones (w10 to w16) -0.8."""
    generator = np.random.default_rng(seed)
    lines: list[dict[str, Any]] = []
    for _ in range(count):
        side = int(generator.integers(2))
        words = generator.integers(3 + 7 * side, 10 + 7 * side, generator.integers(3, 8))
        text = " ".join(f"w{w}" for w in words)
        lines.append({"text": text, "score": 0.8 - 1.6 * side})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def run(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as exit_:
        main([str(a) for a in arguments])
    return int(exit_.value.code or 0)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny.write_checkpoint(tmp_path / "ck", initialization="copy", dtype="F16")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "data.jsonl")


def test_a_run_leaves_a_trained_checkpoint_and_a_report(
    tmp_path: Path, checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {n: t.raw(n).copy() for t in [TensorStore.open(checkpoint, "otter")] for n in t}
    test = write_lines(tmp_path / "test.jsonl", 30, seed=1)
    delta = tmp_path / "delta.safetensors"
    command = ["train", checkpoint, "--data", data, "--objective", "regression", *FAST]
    command += ["--test-data", test, "--trainable", r"layers\.1\.|signals", "--delta", delta]
    assert run(*command) == 0
    output = capsys.readouterr()
    assert "test pearson by prefix (30 items):" in output.out
    assert "parameters in" in output.err

    after = Checkpoint.open(checkpoint)
    trained = TensorStore.open(tmp_path, "delta")
    for name, bits in before.items():
        assert after.tensors[name].dtype == "F16"
        same = np.array_equal(after.tensors.raw(name), bits)
        assert same != (name in trained), name
    for name in trained:
        assert np.array_equal(trained.raw(name), after.tensors.raw(name)), name

    report = json.loads((checkpoint / "training_report.json").read_text())
    assert report["results"]["test"]["pearson"]["100"] > 0.8
    assert report["items"] == {"train": 108, "held_out": 12}
    assert report["steps"] == len(report["curve"])
    assert (checkpoint / "training_curve.png").read_bytes().startswith(b"\x89PNG")
    assert not (checkpoint / "training_state").exists()
    assert not list(checkpoint.glob(".*"))


def test_pairs_and_q_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "ck", signals=(tiny.NEXT,))
    generator = np.random.default_rng(0)

    def words(low: int) -> str:
        return " ".join(f"w{w}" for w in generator.integers(low, low + 5, 4))

    pairs = [{"prompt": "w90 w91", "chosen": words(3), "rejected": words(20)} for _ in range(60)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    assert run("train", checkpoint, "--data", data, "--objective", "pairwise", *FAST) == 0
    report = json.loads((checkpoint / "training_report.json").read_text())
    assert report["signal"] == "next"
    assert report["results"]["held_out"]["accuracy"]["100"] == 1.0
    assert "held-out accuracy by prefix" in capsys.readouterr().out


def test_texts_that_are_trained_on_and_judged_are_named(
    checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", checkpoint, "--data", data, "--objective", "regression", *FAST]
    assert run(*command, "--eval-data", data) == 0
    assert "120 of 120 held-out items of reward are also trained on" in capsys.readouterr().err


def test_the_report_repeats_with_the_seed(tmp_path: Path, data: Path) -> None:
    tensors = []
    for name in ("one", "two"):
        checkpoint = tiny.write_checkpoint(tmp_path / name)
        command = ["train", checkpoint, "--data", data, "--objective", "regression", *FAST]
        assert run(*command) == 0
        tensors.append((checkpoint / "otter.safetensors").read_bytes())
    assert tensors[0] == tensors[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "none.jsonl"], "none.jsonl does not exist"),
        (["--signal", "price"], "there is no signal 'price'; the checkpoint has reward"),
        (["--trainable", "(("], "is no regular expression"),
        (["--trainable", "nothing"], "matches no inserted tensor"),
        (["--objective", "ranking"], "'ranking' is not one of"),
        (["--epochs", "0"], "--epochs"),
        (["--score-scale", "0"], "--score-scale"),
        (["--score-scale", "0.5"], "line 1: score"),
        (["--eval-fraction", "1"], "--eval-fraction"),
        (["--dtype", "int4"], "--dtype"),
        (["--objective", "pairwise"], "missing chosen, rejected"),
        (["--max-tokens", "1"], "--max-tokens"),
    ],
)
def test_misuse_is_one_line_and_changes_nothing(
    checkpoint: Path,
    data: Path,
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {p.name: p.read_bytes() for p in checkpoint.iterdir()}
    command = ["train", checkpoint, "--data", data, "--objective", "regression", *FAST]
    assert run(*command, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert {p.name: p.read_bytes() for p in checkpoint.iterdir()} == before


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("config.json", {"rms_norm_eps": None}, "rms_norm_eps"),
        ("config.json", {"hidden_act": None}, "hidden_act"),
        ("tokenizer.json", {"model": {"type": "New", "vocab": {}}}, "tokenizer"),
        ("tokenizer.json", {"model": UNKNOWN_ONLY}, "token id 900"),
    ],
)
def test_what_libraries_raise_is_one_line(
    checkpoint: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    file: str,
    changes: dict[str, Any],
    said: str,
) -> None:
    path = checkpoint / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    status = run("train", checkpoint, "--data", data, "--objective", "regression", *FAST)
    error = capsys.readouterr().err.splitlines()[-1]
    assert status == 2 and error.startswith("error: ") and re.search(said, error), error
    assert str(checkpoint) in error


def test_a_checkpoint_without_tokenizer(
    checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in checkpoint.glob("tokenizer*"):
        path.unlink()
    assert run("train", checkpoint, "--data", data, "--objective", "regression") == 2
    assert "has no usable tokenizer" in capsys.readouterr().err


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in another number of threads may round differently."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def resumable(checkpoint: Path, data: Path) -> list[str]:
    """A run of some seconds."""
    options = ["--data", str(data), "--objective", "regression", *FAST, "--epochs", "20"]
    return ["train", str(checkpoint), *options]


def wait_for_state(checkpoint: Path, running: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    state = checkpoint / "training_state" / "state.json"
    while not state.is_file() and running() and time.monotonic() < deadline:
        time.sleep(0.01)


def assert_resumes(tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run of ``killed`` is unfinished; finish it, and compare with one that was left alone."""
    whole = tiny.write_checkpoint(tmp_path / "whole")
    killed = tmp_path / "killed"
    assert not (killed / "training_report.json").exists()
    for checkpoint in (killed, whole):
        assert run(*resumable(checkpoint, data)) == 0
        assert ("resumed" in capsys.readouterr().err) == (checkpoint == killed)
    tensors = [(c / "otter.safetensors").read_bytes() for c in (killed, whole)]
    assert tensors[0] == tensors[1]


def start(checkpoint: Path, data: Path) -> subprocess.Popen[str]:
    """The run in a process of its own, so that a signal reaches nothing else."""
    program = "from otter_export.cli import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *resumable(checkpoint, data)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_an_interrupted_run_resumes_to_the_same_tensors(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C: the current step is finished and the state is saved."""
    killed = tiny.write_checkpoint(tmp_path / "killed")
    process = start(killed, data)
    wait_for_state(killed, lambda: process.poll() is None)
    process.send_signal(signal.SIGINT)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "repeat the command to resume" in message
    assert "Traceback" not in message
    assert_resumes(tmp_path, data, capsys)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_killed_run_resumes_to_the_same_tensors(
    tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """SIGKILL: what was saved last is whole."""
    killed = tiny.write_checkpoint(tmp_path / "killed")
    process = start(killed, data)
    wait_for_state(killed, lambda: process.poll() is None)
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert_resumes(tmp_path, data, capsys)


@pytest.mark.parametrize("planted", ["training_state", "training_state/state.json"])
def test_a_planted_link_is_refused(
    tmp_path: Path,
    checkpoint: Path,
    data: Path,
    planted: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A stranger's checkpoint must not lead a training run out of its directory."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "state.json").write_text("{}")
    link = checkpoint / planted
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(outside / "state.json" if link.suffix else outside)
    command = ["train", checkpoint, "--data", data, "--objective", "regression", *FAST]
    for restart in ([], ["--restart"]):
        assert run(*command, *restart) == 2
        assert f"{link} is a link; remove it" in capsys.readouterr().err
    assert [p.name for p in outside.iterdir()] == ["state.json"]
    assert (outside / "state.json").read_text() == "{}"


def test_links_at_predictable_names_are_not_written_through(
    tmp_path: Path, checkpoint: Path, data: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    names = ("otter.safetensors", "training_report.json", "training_curve.png")
    for name in names[1:]:
        (checkpoint / name).symlink_to(victim)
    for name in names:
        (checkpoint / f".{name}.partial").symlink_to(victim)
    command = ["train", checkpoint, "--data", data, "--objective", "regression", *FAST]
    assert run(*command, "--max-steps", "2") == 0
    assert victim.read_text() == "precious"
    assert all((checkpoint / name).is_file() for name in names)
    assert not any((checkpoint / name).is_symlink() for name in names)


def test_a_state_names_no_file_elsewhere(
    tmp_path: Path, checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = checkpoint / "training_state"
    state.mkdir()
    (state / "state.json").write_text(json.dumps({"tensors": "../otter.safetensors"}))
    command = ["train", checkpoint, "--data", data, "--objective", "regression", *FAST]
    assert run(*command) == 2
    assert "is damaged" in capsys.readouterr().err


def test_two_trainings_of_one_checkpoint(
    checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", checkpoint, "--data", data, "--objective", "regression", *FAST]
    with exclusive(checkpoint, "is being trained"):
        assert run(*command) == 2
    assert f"{checkpoint} is being trained or read by another process" in capsys.readouterr().err
    assert run(*command, "--max-steps", "1") == 0


def test_a_run_that_was_killed_before_its_last_call_is_finished(
    checkpoint: Path,
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The tensors are replaced, the state is not removed: it must not be trained a second time."""
    command = ["train", checkpoint, "--data", data, "--objective", "regression", *FAST]
    with monkeypatch.context() as patch:
        patch.setattr("otter_export.cli.train.finish", lambda *_: None)
        assert run(*command, "--max-steps", "2") == 0
    tensors = (checkpoint / "otter.safetensors").read_bytes()
    assert (checkpoint / "training_state" / "state.json").is_file()
    assert run(*command, "--max-steps", "2") == 0
    assert "held-out pearson by prefix" in capsys.readouterr().out
    assert (checkpoint / "otter.safetensors").read_bytes() == tensors
    assert not (checkpoint / "training_state").exists()
