"""L0: ``otter-export inspect`` tells what a checkpoint or an engine is, quickly."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from otter_export import insert
from otter_export.channel_options import ChannelOptions
from otter_export.signals import Signal
from tests import tiny
from tests.command_line import Cli
from tests.dummy_engine import write_engine


@pytest.fixture
def checkpoint(family: str, tmp_path: Path) -> Path:
    signals = (tiny.REWARD, Signal("next", "q_value", "identity", None))
    base = tiny.write_base(tmp_path / "base", family)
    return tiny.write_checkpoint(tmp_path / "ckpt", base=base, signals=signals)


def test_numbers_of_a_checkpoint(family: str, checkpoint: Path, cli: Cli) -> None:
    result = cli("inspect", checkpoint, "--json")
    assert result.status == 0 and result.stderr == ""
    data = json.loads(result.stdout)
    inserted = load_file(checkpoint / "otter.safetensors")
    base = load_file(checkpoint / "model.safetensors")
    assert data["kind"] == "checkpoint" and data["base"]["family"] == family
    for side, tensors in (("base", base), ("channel", inserted)):
        assert data[side]["parameters"] == sum(v.size for v in tensors.values())
        assert data[side]["bytes"] == sum(v.nbytes for v in tensors.values())
        assert data[side]["dtypes"] == {"F32": data[side]["bytes"]}
    share = data["channel"]["parameters"] / data["base"]["parameters"]
    assert data["channel"]["share_of_base"] == pytest.approx(share)
    assert [s["name"] for s in data["signals"]] == ["reward", "next"]
    for key, total in (("base", "base"), ("inserted", "channel")):
        parts = [part[key]["parameters"] for part in data["parts"].values()]
        assert sum(parts) == data[total]["parameters"]
    # Every tensor has its place.
    assert "other" not in data["parts"]
    heads = inserted["signals.reward.weight"].size + inserted["signals.next.weight"].size
    assert data["parts"]["signals"]["inserted"]["parameters"] == heads + 1 + 128


def test_parts_of_a_checkpoint(tmp_path: Path, cli: Cli) -> None:
    path = tiny.write_checkpoint(tmp_path / "ckpt")
    parts = json.loads(cli("inspect", path, "--json").stdout)["parts"]
    base = {name: part["base"]["parameters"] for name, part in parts.items()}
    # d 64, m 96, V 128, 64 query and 32 key/value rows, 2 layers, a tied head.
    assert base == {
        "embedding": 128 * 64,
        "attention": 2 * (64 + 2 * 32 + 64) * 64,
        "feed-forward": 2 * 3 * 96 * 64,
        "norms": 5 * 64,
        "signals": 0,
    }


def test_the_table_of_a_checkpoint(checkpoint: Path, cli: Cli) -> None:
    result = cli("inspect", checkpoint)
    assert result.status == 0
    lines = result.stdout.splitlines()
    assert f"checkpoint  {checkpoint}" in lines
    assert "reward  value    tanh        [-1.0, 1.0]" in lines
    assert "next    q_value  identity    none" in lines
    assert any(line.split() == ["hidden", "64", "16"] for line in lines)
    assert lines[-1].startswith("total")


def test_an_engine(tmp_path: Path, cli: Cli) -> None:
    engine = write_engine(tmp_path / "engine")
    result = cli("inspect", engine)
    assert "mends             phantom_biases" in result.stdout
    assert result.status == 0
    lines = result.stdout.splitlines()
    assert "target            onnx, cpu, fp32, read_only caches" in lines
    rows = [line.split() for line in lines]
    assert ["input_ids", "int64", "[batch,", "sequence]"] in rows
    # The layers' caches differ by their number only.
    assert "past_key_values.N.key (N < 2)" in [line.partition("  ")[0] for line in lines]
    assert any(line.startswith("model.onnx") for line in lines)
    data = json.loads(cli("inspect", engine, "--json").stdout)
    assert data["kind"] == "engine" and data["format_version"] == 1
    assert data["outputs"][1] == {"name": "reward", "dtype": "float32", "shape": ["batch", "rows"]}


def test_no_weights_are_read(tmp_path: Path) -> None:
    # Llama-3.1-70B's sizes: 141 GB of weights in a sparse file.
    base = tiny.write_sparse_base(
        tmp_path / "base",
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=128256,
        tie_word_embeddings=False,
    )
    assert (base / "model.safetensors").stat().st_size > 140 * 10**9
    ckpt = tmp_path / "ckpt"
    planned = insert.plan(str(base), ckpt, ChannelOptions(), adapter=True)
    ckpt.mkdir()
    (ckpt / "otter_config.json").write_text(json.dumps(planned.config.to_json()))
    shapes = {tensor.name: tensor.shape for tensor in planned.tensors}
    tiny.write_sparse(ckpt / "otter.safetensors", shapes, "F32")

    command = [sys.executable, "-m", "otter_export", "inspect", str(ckpt)]
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    assert "layers      80" in done.stdout
    # The whole process, start included: half a second on an idle machine, so that there is room
    # for a busy one; reading the weights would take minutes.
    assert seconds < 3.0


def test_a_checkpoint_makes_nobody_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    """A stranger's adapter names its base; looking at it asks the hub's cache alone."""
    hub = pytest.importorskip("huggingface_hub")
    checkpoint = tiny.write_checkpoint(tmp_path / "ck", adapter=True)
    config = json.loads((checkpoint / "otter_config.json").read_text())
    config["base_model_name_or_path"] = "stranger/model"
    (checkpoint / "otter_config.json").write_text(json.dumps(config))
    asked: list[object] = []

    def snapshot_download(name: str, **options: object) -> str:
        asked.append(options.get("local_files_only"))
        raise OSError("it is not in the cache")

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    result = cli("inspect", checkpoint)
    assert result.status == 2 and asked == [True]
    assert "get it with: hf download stranger/model" in result.stderr


def test_what_a_signal_drafts(tmp_path: Path, cli: Cli) -> None:
    whole = Signal("ahead", "medusa", "identity", None, heads=2)
    checkpoint = tiny.write_checkpoint(tmp_path / "ck", signals=(tiny.DRAFTS, whole))
    lines = cli("inspect", checkpoint).stdout.splitlines()
    assert "drafts  medusa (3 x 40 tokens)   identity    none" in lines
    assert "ahead   medusa (2 x all tokens)  identity    none" in lines
