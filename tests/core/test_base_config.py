"""L0: config.json is checked value by value before a library sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export.base_config import FAITHFUL_ACTIVATIONS, checked, read_config
from otter_export.checkpoint import BaseModel
from otter_export.errors import CheckpointError, ConfigError, OtterError, UnsupportedError
from tests import tiny

LINEAR = {"rope_type": "linear", "factor": 2}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rms_norm_eps": 1}, "rms_norm_eps must be a number from 1e-20 to 0.1, got 1"),
        ({"rms_norm_eps": None}, "rms_norm_eps must be a number .* got None"),
        ({"rms_norm_eps": True}, "rms_norm_eps must be a number .* got True"),
        ({"attention_bias": 0}, "attention_bias must be true or false, got 0"),
        ({"mlp_bias": "no"}, "mlp_bias must be true or false, got 'no'"),
        ({"tie_word_embeddings": None}, "tie_word_embeddings must be true or false, got None"),
        ({"rope_theta": "1e4"}, "rope_theta must be a number from 1 to 1e.15, got '1e4'"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling.factor is missing"),
        ({"rope_scaling": {**LINEAR, "factor": "2"}}, "rope_scaling.factor must be a number"),
        (
            {"rope_parameters": {**LINEAR, "original_max_position_embeddings": 2.0}},
            "rope_parameters.original_max_position_embeddings must be an integer",
        ),
        ({"architectures": "Llama"}, "architectures must be a list of names"),
    ],
)
def test_wrong_values_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked({**tiny.LLAMA, **change}, "config.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": "default"}, "rotary scaling 'default'; built faithfully"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rotary scaling 'yarn'"),
        ({"rope_parameters": {"full": {"rope_type": "default"}}}, "'one per layer type'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only whole heads"),
        ({"hidden_act": "mish"}, "hidden_act = 'mish' is not supported; accepted: silu"),
        ({"hidden_act": None}, "hidden_act = None is not supported"),
        ({"layer_types": ["sliding_attention"]}, "layer_types must all be 'full_attention'"),
    ],
)
def test_what_no_target_builds_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        checked({**tiny.LLAMA, **change}, "config.json")


def test_all_wrong_values_are_listed_at_once() -> None:
    with pytest.raises(ConfigError, match=r"^c: rms_norm_eps .*; rope_theta .*; attention_bias "):
        checked({"rms_norm_eps": 1, "rope_theta": 0, "attention_bias": 0}, "c")


def test_integers_become_the_floats_that_libraries_insist_on() -> None:
    values = checked({"rope_theta": 10000, "rope_scaling": LINEAR}, "c")
    assert type(values["rope_theta"]) is type(values["rope_scaling"]["factor"]) is float
    assert "rope_theta" not in checked({"rope_theta": None}, "c")


def test_libraries_get_checked_values_and_sizes_alone(tmp_path: Path) -> None:
    """Ten trillion labels would become a dictionary of as many entries."""
    directory = tiny.write_base(
        tmp_path / "base", num_labels=10**13, pad_token_id=128, attention_dropout="x"
    )
    base = BaseModel.open(directory)
    config = base.library_config
    assert not {"num_labels", "pad_token_id", "attention_dropout", "eos_token_id"} & set(config)
    assert config["head_dim"] == 16 and config["num_key_value_heads"] == 2
    assert config["rms_norm_eps"] == 1e-5 and config["model_type"] == "llama"


def test_generation_settings_must_be_an_object(tmp_path: Path) -> None:
    directory = tiny.write_base(tmp_path / "base")
    (directory / "generation_config.json").write_text("[2]")
    with pytest.raises(ConfigError, match=r"generation_config.json: expected a JSON object"):
        BaseModel.open(directory)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "generation_config.json"])
def test_a_pointer_of_git_lfs_in_any_file(name: str, tmp_path: Path) -> None:
    directory = tiny.write_base(tmp_path / "base")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    (directory / name).write_text(pointer)
    with pytest.raises(OtterError, match=rf"{name} .*Git LFS pointer"):
        BaseModel.open(directory)


def test_a_directory_without_a_config_says_what_it_holds(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config.json does not exist: .* is empty"):
        read_config(tmp_path)
    tiny.write_base(tmp_path / "checkpoint-500")
    with pytest.raises(CheckpointError, match=r"give one of them: .*checkpoint-500$"):
        read_config(tmp_path)
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "model.gguf").touch()
    with pytest.raises(CheckpointError, match="holds GGUF files"):
        read_config(tmp_path / "only")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)
KEYS = sorted(
    {*tiny.LLAMA, *tiny.GPT2, *tiny.QWEN2, "rope_scaling", "rope_parameters", "num_labels"}
    | {"attention_bias", "mlp_bias", "layer_types", "sliding_window", "quantization_config"}
)


@given(st.sampled_from(sorted(tiny.CONFIGS)), st.sampled_from(KEYS), anything)
def test_any_value_is_accepted_or_one_error(
    tmp_path_factory: pytest.TempPathFactory, family: str, key: str, value: Any
) -> None:
    directory = tmp_path_factory.getbasetemp() / "fuzzed"
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**tiny.CONFIGS[family], key: value}))
    try:
        config = BaseModel.open(directory).library_config
    except OtterError as error:
        assert "\n" not in str(error)
    else:
        activation = config.get("hidden_act", config.get("activation_function", "silu"))
        assert activation in FAITHFUL_ACTIVATIONS


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_link_to_nothing_is_said(name: str, tmp_path: Path) -> None:
    directory = tiny.write_base(tmp_path / "base")
    (directory / name).unlink()
    (directory / name).symlink_to("../blobs/5f3a")
    with pytest.raises(CheckpointError, match=rf"{name} is a link to ../blobs/5f3a, which does"):
        BaseModel.open(directory)
