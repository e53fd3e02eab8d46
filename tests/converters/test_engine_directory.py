"""L1: what an engine records of its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from otter_export.checkpoint import Checkpoint
from tests import tiny

pytest.importorskip("mobius")

from otter_export.converters.engine_directory import source_of


def shard(checkpoint: Path) -> None:
    """Split ``otter.safetensors`` into two shards with an index."""
    tensors = load_file(checkpoint / "otter.safetensors")
    names = sorted(tensors)
    parts = {
        "otter-1.safetensors": names[: len(names) // 2],
        "otter-2.safetensors": names[len(names) // 2 :],
    }
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, checkpoint / file)
    index = {"weight_map": {name: file for file, held in parts.items() for name in held}}
    (checkpoint / "otter.safetensors.index.json").write_text(json.dumps(index))
    (checkpoint / "otter.safetensors").unlink()


def test_every_shard_is_hashed_by_its_content(tmp_path: Path) -> None:
    path = tiny.write_checkpoint(tmp_path / "checkpoint")
    shard(path)
    before = source_of(Checkpoint.open(path))
    assert set(before["sha256"]) == {
        "otter_config.json",
        "otter.safetensors.index.json",
        "otter-1.safetensors",
        "otter-2.safetensors",
    }
    tensors = load_file(path / "otter-2.safetensors")
    name = sorted(tensors)[0]
    save_file({**tensors, name: tensors[name] + 1}, path / "otter-2.safetensors")
    after = source_of(Checkpoint.open(path))
    changed = [k for k, v in before["sha256"].items() if after["sha256"][k] != v]
    assert changed == ["otter-2.safetensors"]
