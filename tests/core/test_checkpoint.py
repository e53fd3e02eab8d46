"""L0: a checkpoint opens with all its tensors, or says everything that is wrong with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from otter_export.checkpoint import Checkpoint
from otter_export.errors import CheckpointError, ConfigError
from otter_export.hub import find_base
from tests import tiny


@pytest.fixture
def checkpoint(tiny_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def edit(path: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize("embedding", ["projection", "table"])
def test_checkpoints_of_every_family_open(
    family: str, shards: int, adapter: bool, embedding: str, tmp_path: Path
) -> None:
    base = tiny.write_base(tmp_path / "base", family, shards=shards)
    path = tiny.write_checkpoint(
        tmp_path / "checkpoint",
        base=base,
        adapter=adapter,
        embedding=embedding,
        signals=(tiny.REWARD, tiny.NEXT),
    )
    if not adapter:
        shutil.rmtree(base)  # self-contained
    opened = Checkpoint.open(path)
    expected = tiny.base_tensors(opened.base.data)
    for name, values in expected.items():
        np.testing.assert_array_equal(opened.base.float32(name), values)
    assert list(opened.non_finite()) == []


def test_an_adapter_and_its_base_move_together(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "here" / "base")
    tiny.write_checkpoint(tmp_path / "here" / "checkpoint", base=base, adapter=True)
    (tmp_path / "here").rename(tmp_path / "there")
    opened = Checkpoint.open(tmp_path / "there" / "checkpoint")
    assert opened.config.base_model_name_or_path == "../base"
    assert opened.base.directory.resolve() == tmp_path / "there" / "base"


def test_all_tensor_problems_are_listed_at_once(checkpoint: Path) -> None:
    def damage(tensors: dict[str, np.ndarray]) -> None:
        del tensors["signals.reward.bias"]
        tensors["signals.other.weight"] = np.zeros((1, 16), np.float32)
        tensors["model.norm.otter.weight"] = np.zeros(17, np.float32)
        name = "model.layers.0.mlp.up_proj.otter.from_base"
        tensors[name] = tensors[name].astype(np.int32)

    edit(checkpoint / "otter.safetensors", damage)
    edit(checkpoint / "model.safetensors", lambda tensors: tensors.pop("model.norm.weight"))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(checkpoint)
    assert sorted(str(caught.value).removeprefix(f"{checkpoint}: ").split("; ")) == [
        "accepted: F32, F16, BF16",
        "base tensor model.norm.weight is missing",
        "tensor model.layers.0.mlp.up_proj.otter.from_base has dtype I32",
        "tensor model.norm.otter.weight has shape [17], expected [16]",
        "tensor signals.other.weight is left over",
        "tensor signals.reward.bias is missing",
    ]


def test_long_lists_of_problems_are_cut(checkpoint: Path) -> None:
    edit(checkpoint / "otter.safetensors", lambda tensors: tensors.clear())
    with pytest.raises(CheckpointError, match=r"and \d+ more$"):
        Checkpoint.open(checkpoint)


def test_non_finite_weights_are_named(checkpoint: Path) -> None:
    def damage(tensors: dict[str, np.ndarray]) -> None:
        tensors["signals.reward.weight"][0, 3] = np.nan

    edit(checkpoint / "otter.safetensors", damage)
    edit(
        checkpoint / "model.safetensors",
        lambda tensors: tensors["model.norm.weight"].__setitem__(0, -np.inf),
    )
    opened = Checkpoint.open(checkpoint)
    assert set(opened.non_finite()) == {"signals.reward.weight", "model.norm.weight"}


def test_weight_files_without_the_optional_prefix(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", "gpt2")
    tensors = load_file(base / "model.safetensors")
    short = {name.removeprefix("transformer."): values for name, values in tensors.items()}
    save_file(short, base / "model.safetensors")
    opened = Checkpoint.open(tiny.write_checkpoint(tmp_path / "checkpoint", base=base))
    np.testing.assert_array_equal(
        opened.base.float32("transformer.wte.weight"), tensors["transformer.wte.weight"]
    )


@pytest.mark.parametrize("name", ["transformer.h.0.attn.c_attn.bias", "transformer.ln_f.bias"])
def test_biases_of_a_wrong_shape(name: str, tmp_path: Path) -> None:
    path = tiny.write_checkpoint(tmp_path / "checkpoint", "gpt2")
    edit(path / "model.safetensors", lambda found: found.update({name: np.zeros(3, np.float32)}))
    with pytest.raises(CheckpointError, match=rf"{name} has shape \[3\], config.json implies"):
        Checkpoint.open(path)


def test_a_config_that_is_not_the_bases(checkpoint: Path) -> None:
    path = checkpoint / "otter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "head_dim": 8, "num_attention_heads": 3}))
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(checkpoint)
    assert "head_dim is 8, the base's is 16" in str(caught.value)
    assert "as in the base, 4 over 2, and not more" in str(caught.value)


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "nowhere", "a/b/c", "~/x"])
def test_a_base_that_is_not_there(name: str) -> None:
    with pytest.raises(CheckpointError, match="neither a directory nor a hub id"):
        find_base(name)


def test_a_hub_id_that_cannot_be_had() -> None:
    pytest.importorskip("huggingface_hub")
    with pytest.raises(CheckpointError, match="'no-one/no-model' could not be fetched"):
        find_base("no-one/no-model")


def test_config_json_must_be_an_object(checkpoint: Path) -> None:
    (checkpoint / "config.json").write_text("[]")
    with pytest.raises(ConfigError, match="expected a JSON object"):
        Checkpoint.open(checkpoint)
