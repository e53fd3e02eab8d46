"""L0, L5: the directory of target trtllm: its files, configuration, tensors and errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from transformers import AutoConfig

from otter_export import load_engine
from otter_export.base_model import BaseModel
from otter_export.channel_options import ChannelOptions, channel_config
from otter_export.checkpoint import Checkpoint
from otter_export.cli import main
from otter_export.config import OtterConfig
from otter_export.converters.target import BuildRequest
from otter_export.converters.tensorrt_llm.config import check_model
from otter_export.converters.tensorrt_llm.pytorch import (
    TARGET,
    hub_tensors,
    plan_directory,
)
from otter_export.errors import OtterError, UnsupportedError
from otter_export.manifest import EngineManifest
from otter_export.safetensors_io import TensorStore, from_float32
from otter_export.shards import in_shards, write_shards
from tests import tiny
from tests.built import random_checkpoint
from tests.converters.tensorrt_llm.shapes import SHAPES, shaped
from tests.families import bases


def written(checkpoint: Checkpoint, directory: Path, precision: str = "bf16") -> Path:
    directory.mkdir()
    plan_directory(checkpoint, BuildRequest(precision)).write(directory, None).save(directory)
    return directory


def test_files_and_manifest(tmp_path: Path) -> None:
    model = written(random_checkpoint(tmp_path / "ck"), tmp_path / "model")
    files = {str(p.relative_to(model)) for p in model.rglob("*") if p.is_file()}
    assert files == {
        "config.json",
        "engine.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "otter_trtllm/__init__.py",
        "otter_trtllm/client.py",
        "otter_trtllm/layers.py",
        "otter_trtllm/model.py",
        "otter_trtllm/weights.py",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    manifest = EngineManifest.load(model)
    assert manifest.target == "trtllm" and manifest.precision == "bf16"
    assert {f.path for f in manifest.files} == files - {"engine.json"}
    assert [(o.name, o.shape) for o in manifest.outputs] == [
        ("logits", ("sequences", 128)),
        ("reward", ("sequences", 1)),
    ]


@pytest.mark.parametrize(
    "rotary",
    [
        {"rope_theta": 500.0},
        {"rope_theta": None, "rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ],
)
def test_transformers_reads_the_configuration(rotary: dict[str, Any], tmp_path: Path) -> None:
    # TensorRT-LLM reads it so; transformers 5 checks heads against widths when it does.
    checkpoint = random_checkpoint(tmp_path / "ck", base=rotary)
    config = AutoConfig.from_pretrained(written(checkpoint, tmp_path / "model"))
    assert config.architectures == ["OtterForCausalLM"] and config.model_type == "llama"
    assert str(config.dtype) == "torch.bfloat16"
    assert config.rope_parameters["rope_theta"] == 500.0
    assert config.otter["signals"] == checkpoint.config.to_json()["signals"]
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 2, 16)
    assert config.otter["base_key_value_heads"] == 2


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", "F16"), ("bf16", "BF16")])
def test_every_tensor_is_there_once(precision: str, dtype: str, tmp_path: Path) -> None:
    signals = (tiny.REWARD, tiny.NEXT)
    checkpoint = random_checkpoint(tmp_path / "ck", "qwen2", signals=signals)
    assert_complete(checkpoint, written(checkpoint, tmp_path / "model", precision), dtype)


@pytest.mark.parametrize("shape", list(SHAPES))
def test_every_tensor_of_a_shape_is_there_once(shape: str, tmp_path: Path) -> None:
    """A channel that shares the base's attention stores none of the base's rows again."""
    checkpoint = shaped(shape, "llama", tmp_path)
    model = written(checkpoint, tmp_path / "model")
    assert_complete(checkpoint, model, "BF16")
    otter = json.loads((model / "config.json").read_text())["otter"]
    channel = checkpoint.config
    assert (otter["first_layer"], otter["attention"]) == (channel.first_layer, channel.attention)


def assert_complete(checkpoint: Checkpoint, model: Path, dtype: str) -> None:
    """The directory holds the tensors of base and channel, rounded to ``dtype``."""
    store = TensorStore.open(model, "model")
    assert {info.dtype for info in store.values()} == {dtype}
    originals = {**dict(checkpoint.base.weights), **dict(checkpoint.tensors)}
    assert set(store) == set(originals)
    for name in store:
        source = checkpoint.tensors if name in checkpoint.tensors else checkpoint.base.weights
        expected = from_float32(source.float32(name), dtype)
        assert store.raw(name).tobytes() == expected.tobytes(), name


def base_of(case_name: str, directory: Path) -> BaseModel:
    case = next(case for case in bases.CASES if case.name == case_name)
    return BaseModel.open(bases.write_base(case, directory))


def test_mistral_without_a_window_has_llamas_modules(tmp_path: Path) -> None:
    base = base_of("mistral", tmp_path / "base")
    checkpoint = Checkpoint.open(tiny.write_checkpoint(tmp_path / "ck", base=base.directory))
    model = written(checkpoint, tmp_path / "model")
    assert set(TensorStore.open(model, "model")) == {*base.weights, *checkpoint.tensors}
    assert AutoConfig.from_pretrained(model).architectures == ["OtterForCausalLM"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("mistral-window", "sliding_window = 8 is not supported by target trtllm"),
        ("qwen2-window", "sliding_window = 8 is not supported by target trtllm"),
        ("ministral3", "family ministral3 has no emitted model for target trtllm"),
        ("smollm3", "family smollm3 has no emitted model for target trtllm"),
    ],
)
def test_bases_that_the_emitted_models_do_not_compute(
    case: str, message: str, tmp_path: Path
) -> None:
    base = base_of(case, tmp_path / "base")
    with pytest.raises(UnsupportedError, match=message):
        check_model(base, channel_config(base, ChannelOptions(hidden_size=16)))


def test_a_rotary_scaling_that_tensorrt_llm_reads_otherwise(tmp_path: Path) -> None:
    scaling = {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64}
    base = BaseModel.open(tiny.write_base(tmp_path / "base", rope_scaling=scaling))
    with pytest.raises(UnsupportedError, match="scaling 'yarn' is not supported by target trtllm"):
        check_model(base, channel_config(base, ChannelOptions(hidden_size=16)))


@pytest.mark.parametrize("attention", ["own", "shared"])
def test_only_a_probe_may_have_heads_in_another_proportion(attention: str, tmp_path: Path) -> None:
    """All heads of a layer are in one attention; a probe has no layer of its own."""
    base = BaseModel.open(tiny.write_base(tmp_path / "base"))  # 4 heads over 2

    def channel(first_layer: int) -> OtterConfig:
        options = ChannelOptions(16, heads=2, key_value_heads=2, first_layer=first_layer)
        return dataclasses.replace(channel_config(base, options), attention=attention)

    check_model(base, channel(2))
    for first_layer in (0, 1):
        with pytest.raises(UnsupportedError, match="the base's proportion, 4 over 2"):
            check_model(base, channel(first_layer))


@pytest.mark.parametrize("equal", [True, False])
def test_a_stored_copy_of_a_tied_head_is_left_out(equal: bool, tmp_path: Path) -> None:
    """One that differs from the embedding is the model's own head, whatever config.json says."""
    base = tiny.write_base(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + np.float32(not equal)
    save_file(tensors, base / "model.safetensors")
    checkpoint = Checkpoint.open(tiny.write_checkpoint(tmp_path / "ck", base=base))
    directory = written(checkpoint, tmp_path / "model")
    assert ("lm_head.weight" in TensorStore.open(directory, "model")) is not equal
    assert json.loads((directory / "config.json").read_text())["tie_word_embeddings"] is equal


def test_shards_hold_no_more_than_asked_for(tmp_path: Path) -> None:
    checkpoint = random_checkpoint(tmp_path / "ck")
    shards = in_shards(hub_tensors(checkpoint, "F16"), shard_bytes=40_000)
    advanced: list[int] = []
    names = write_shards(tmp_path, shards, advanced.append)
    files = names[:-1]
    assert len(files) == len(shards) > 2 and names[-1] == "model.safetensors.index.json"
    sizes = [sum(t.nbytes for t in load_file(tmp_path / f).values()) for f in files]
    assert max(sizes) <= 40_000 and sum(sizes) == sum(advanced)
    whole = written(checkpoint, tmp_path / "model", "fp16")
    one, many = TensorStore.open(whole, "model"), TensorStore.open(tmp_path, "model")
    assert set(one) == set(many)
    assert all(np.array_equal(one.raw(name), many.raw(name)) for name in one)


@pytest.mark.parametrize(
    ("family", "precision", "message"),
    [
        ("llama", "fp32", "--precision fp32 is not available for target trtllm; .* bf16, fp16"),
        ("llama", "int4", "--precision int4 is not available"),
        ("gpt2", "bf16", "family gpt2 has no emitted model for target trtllm"),
    ],
)
def test_what_cannot_be_built_is_one_clear_line(
    family: str, precision: str, message: str, tmp_path: Path
) -> None:
    checkpoint = random_checkpoint(tmp_path / "ck", family)
    with pytest.raises(UnsupportedError, match=message) as caught:
        TARGET.plan(checkpoint, BuildRequest(precision))
    assert isinstance(caught.value, OtterError) and "\n" not in str(caught.value)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_checkpoint(tmp_path / "ck")
    model = tmp_path / "model"
    command = ["build", str(tmp_path / "ck"), "--target", "trtllm", "--out", str(model)]
    with pytest.raises(SystemExit) as caught:
        main(command)
    assert caught.value.code == 0
    assert "trtllm-serve DIR --custom_module_dirs DIR/otter_trtllm" in capsys.readouterr().out
    assert EngineManifest.load(model).precision == "bf16"
    with pytest.raises(UnsupportedError, match=r"own runtime \(in it: .*client\), not here"):
        load_engine(model)
