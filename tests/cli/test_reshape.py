"""L5: ``otter-export reshape``: what it prints, and its parity."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from otter_export.checkpoint import Checkpoint
from otter_export.cli import reshape as command
from otter_export.files import exclusive, steady
from tests import tiny
from tests.command_line import Cli

PROMPTS = ("--prompt", "w5 w9 w23", "--prompt", "w77 w3")


@pytest.fixture
def checkpoint(tiny_llama: Path, tmp_path: Path) -> Path:
    """Copied, but for the values and the feed-forward of layer 1."""
    path = tiny.write_checkpoint(tmp_path / "ck", base=tiny_llama, initialization="copy")
    tensors = load_file(path / "otter.safetensors")
    generator = np.random.default_rng(0)
    for name in tensors:
        if "layers.1.mlp" in name or "layers.1.self_attn.v_proj" in name or "signals" in name:
            noise = generator.standard_normal(tensors[name].shape) * 0.2
            tensors[name] = (tensors[name] + noise).astype(np.float32)
    save_file(tensors, path / "otter.safetensors", {"format": "pt"})
    return path


def test_the_plain_command(cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = cli("reshape", checkpoint, out, *PROMPTS)
    assert result.status == 0
    before, after, parity = result.stdout.splitlines()
    assert before.startswith(f"{checkpoint}: projection embedding; ")
    assert after.startswith(f"{out}: from layer 1 of 2, shared attention; ")
    assert parity.startswith("reward differs by at most ")
    assert (Checkpoint.open(out).config.first_layer, Checkpoint.open(out).config.version) == (1, 2)
    assert cli("reshape", checkpoint, out).status == 2  # exists


def test_one_json_object(cli: Cli, checkpoint: Path, tmp_path: Path) -> None:
    arguments = ("--first-layer", "1", "--attention", "own", *PROMPTS, "--json")
    result = cli("reshape", checkpoint, tmp_path / "out", *arguments)
    data = json.loads(result.stdout)
    shapes = [(s["first_layer"], s["attention"]) for s in data["shapes"]]
    assert shapes == [(0, "own"), (1, "own")]
    assert data["shapes"][0]["parameters"] > data["shapes"][1]["parameters"] > 0
    parity = data["parity"]["reward"]
    # The same sums in another order, in units of the reward's spread.
    assert 0 <= parity["relative"] < 1e-4 and 0 <= parity["maximum"] < 1e-5
    assert set(data) == {"checkpoint", "out", "shapes", "bytes", "seconds", "parity"}


def test_more_than_rounding_is_a_failed_check(
    cli: Cli, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reshaping that forgets what was trained: as if nothing had changed."""
    monkeypatch.setattr(command.reshaping, "changed_tensors", lambda *_: [])
    result = cli("reshape", checkpoint, tmp_path / "out", *PROMPTS)
    assert result.status == 1
    assert "the signal reward would differ by " in result.stderr.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["ck"]


def test_a_long_prompt_is_cut_to_the_positions(cli: Cli, tmp_path: Path) -> None:
    """GPT-2 has a table of positions, whose end is the end of what torch can run."""
    checkpoint = tiny.write_checkpoint(tmp_path / "ck", "gpt2", initialization="copy")
    result = cli("reshape", checkpoint, tmp_path / "out", "--prompt", "w3 " * 500)
    assert result.status == 0
    assert Checkpoint.open(tmp_path / "out").config.first_layer == 2


def test_a_channel_of_no_numbers_is_told_from_a_failed_check(
    cli: Cli, checkpoint: Path, tmp_path: Path
) -> None:
    tensors = load_file(checkpoint / "otter.safetensors")
    tensors["signals.reward.weight"][0, 0] = np.nan
    save_file(tensors, checkpoint / "otter.safetensors", {"format": "pt"})
    result = cli("reshape", checkpoint, tmp_path / "out", *PROMPTS)
    assert result.status == 2
    assert "the signal reward of" in result.stderr and "NaN or infinite" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_training_and_a_reader_wait_for_each_other(
    cli: Cli, checkpoint: Path, tmp_path: Path
) -> None:
    """Half of a reshaped checkpoint would be from before a training's end, half from behind it."""
    for name, *options in (("reshape",), ("add-signal", "--signal", "b:value")):
        arguments = (name, checkpoint, tmp_path / "out", *options)
        with exclusive(checkpoint, "is being read"):
            result = cli(*arguments)
        assert result.status == 2
        assert f"{checkpoint} is being trained by another process" in result.stderr
        with steady(checkpoint, "is being trained"):
            assert cli(*arguments, "--force").status == 0
