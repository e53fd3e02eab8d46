"""L0: config.json is checked value by value before a library sees it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export.base_config import (
    FAITHFUL_ACTIVATIONS,
    check_family_settings,
    checked,
    original_length,
    read_config,
)
from otter_export.base_model import BaseModel
from otter_export.errors import CheckpointError, ConfigError, OtterError, UnsupportedError
from otter_export.families import FAMILIES
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


YARN = {"rope_type": "yarn", "factor": 4.0}
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


@pytest.mark.parametrize("key", ["attn_logit_softcapping", "final_logit_softcapping"])
def test_soft_caps(key: str) -> None:
    assert checked({key: None}, "c")[key] is None
    cap = checked({key: 30}, "c")[key]
    assert type(cap) is float and cap == 30
    for wrong in (0, -1.0, "30", True, [30.0], float("nan")):
        with pytest.raises(ConfigError, match=rf"c: {key} must be a number from 0.001 to 1e\+06"):
            checked({key: wrong}, "c")


@pytest.mark.parametrize(
    ("key", "good", "wrong"),
    [
        ("sliding_window", 1, 0),
        ("query_pre_attn_scalar", 144, 0),
        ("max_window_layers", 0, -1),
        ("no_rope_layer_interval", 4, 0),
        ("sliding_window_pattern", 6, 0),
        ("original_max_position_embeddings", 4096, 0),
    ],
)
def test_integers_that_may_be_none(key: str, good: int, wrong: int) -> None:
    for value in (good, None):
        assert checked({key: value}, "c")[key] == value
    for value in (wrong, 1 << 40, 8.0, True, "8", [8]):
        with pytest.raises(ConfigError, match=rf"c: {key} must be an integer from"):
            checked({key: value}, "c")


@pytest.mark.parametrize(
    ("key", "good", "wrong"),
    [
        ("logit_scale", 1, 0),
        ("logits_scaling", 8, -8.0),
        ("embedding_multiplier", 12, 0.0),
        ("residual_multiplier", 0.22, 1e7),
        ("attention_multiplier", 0.015625, 0),
        ("rotary_pct", 0.25, 1.5),
        ("partial_rotary_factor", 1, 0),
        ("rotary_emb_base", 10000, 0),
        ("rope_local_base_freq", 10000, 0.5),
        ("norm_eps", 1e-5, 1),
    ],
)
def test_numbers_of_families(key: str, good: float, wrong: float) -> None:
    value = checked({key: good}, "c")[key]
    assert type(value) is float and value == good
    for bad in (wrong, True, "1", [1.0]):
        with pytest.raises(ConfigError, match=rf"c: {key} must be a number from"):
            checked({key: bad}, "c")


@pytest.mark.parametrize("value", [1, [2], [True], ["1"], {"0": 1}])
def test_layers_that_rotate_are_a_list_of_0_and_1(value: object) -> None:
    assert checked({"no_rope_layers": None}, "c")["no_rope_layers"] is None
    with pytest.raises(ConfigError, match="no_rope_layers must be a list of 0 and 1"):
        checked({"no_rope_layers": value}, "c")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_type": "yarn"}, "factor is missing, which scaling yarn needs"),
        ({**YARN, "beta_fast": -1}, "beta_fast must be a number from 0 to"),
        ({**YARN, "attention_factor": "x"}, "attention_factor must be a number"),
        ({**YARN, "truncate": 0}, "truncate must be true or false, got 0"),
        ({**YARN, "original_max_position_embeddings": 0}, "original_max_position_embeddings must"),
        ({"rope_type": "longrope"}, "short_factor is missing.*long_factor is missing"),
        ({**LONGROPE, "long_factor": [1, 0]}, "long_factor must be a list of positive numbers"),
        ({**LONGROPE, "short_factor": [True]}, "short_factor must be a list of positive numbers"),
        ({**LONGROPE, "long_factor": 2.0}, "long_factor must be a list of positive numbers"),
    ],
)
def test_wrong_rotary_settings_are_named(settings: dict[str, Any], message: str) -> None:
    for key, value in (
        ("rope_scaling", settings),
        ("rope_parameters", settings),
        ("rope_parameters", {"full_attention": settings}),
    ):
        with pytest.raises(ConfigError, match=message):
            checked({key: value}, "c")


def test_rotary_settings_by_kind_of_layer_and_what_lies_beside_them() -> None:
    """Which of them are read is the model's choice, so all are checked and kept."""
    values = checked(
        {
            "rope_parameters": {
                "full_attention": YARN,
                "sliding_attention": None,
                "rope_theta": 500000,
                "linear_attention": {"rope_type": "no such"},
            }
        },
        "c",
    )["rope_parameters"]
    by_kind = {"full_attention": YARN, "sliding_attention": None}
    assert values == {**by_kind, "rope_theta": 5e5, "rope_type": "default"}
    assert type(values["rope_theta"]) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_scaling": "default"}, "rotary scaling 'default'; built faithfully"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rotary scaling 'dynamic'"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "dynamic"}}},
            r"rope_parameters\.full_attention asks for rotary scaling 'dynamic'",
        ),
        ({"rope_parameters": {"full_attention": 0}}, "full_attention asks for rotary scaling 0"),
        ({"hidden_act": "mish"}, "hidden_act = 'mish' is not supported; accepted: silu"),
        ({"hidden_act": None}, "hidden_act = None is not supported"),
        ({"hidden_activation": "mish"}, "hidden_activation = 'mish' is not supported"),
    ],
)
def test_what_no_target_builds_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedError, match=message):
        checked({**tiny.LLAMA, **change}, "config.json")
    assert "hidden_activation" in checked({"hidden_activation": None}, "config.json")


FULL, SLIDING = "full_attention", "sliding_attention"


@pytest.mark.parametrize(
    ("family", "change", "message"),
    [
        ("llama", {"layer_types": [FULL, SLIDING]}, "must all be 'full_attention' in a llama base"),
        ("qwen2", {"layer_types": [FULL, "chunked"]}, "'full_attention' or 'sliding_attention'"),
        ("qwen2", {"layer_types": FULL}, "layer_types must all be"),
        ("qwen2", {"layer_types": [[FULL], FULL]}, "layer_types must all be"),
        ("llama", {"partial_rotary_factor": 0.5}, "whole heads; partial_rotary_factor is 0.5"),
        (
            "llama",
            {"rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor is 0.5",
        ),
        (
            "gemma3",
            {"rope_parameters": {FULL: {**LINEAR, "partial_rotary_factor": 0.5}}},
            "a gemma3 model rotates whole heads; partial_rotary_factor is 0.5",
        ),
    ],
)
def test_what_a_family_does_not_have_is_refused(
    family: str, change: dict[str, Any], message: str
) -> None:
    data = {**tiny.CONFIGS.get(family, {}), **change}
    with pytest.raises(UnsupportedError, match=message):
        check_family_settings(data, FAMILIES.load(family), "c")


def test_what_a_family_has_is_accepted() -> None:
    accepted: list[tuple[str, dict[str, Any]]] = [
        ("llama", {"layer_types": [FULL, FULL], "partial_rotary_factor": 1.0}),
        ("qwen2", {"layer_types": [FULL, SLIDING], "sliding_window": 8}),
        ("phi", {"num_hidden_layers": 2, "partial_rotary_factor": 0.5}),
        ("smollm3", {"num_hidden_layers": 2, "no_rope_layers": [0, 1]}),
    ]
    for family, change in accepted:
        data = {**tiny.CONFIGS.get(family, {}), **change}
        check_family_settings(data, FAMILIES.load(family), "c")


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("qwen2", {"layer_types": [FULL]}),
        ("gemma2", {"layer_types": [FULL] * 3}),
        ("smollm3", {"no_rope_layers": [1]}),
    ],
)
def test_lists_have_a_value_for_each_layer(family: str, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"c: {next(iter(change))} must list 2 layers"):
        check_family_settings({"num_hidden_layers": 2, **change}, FAMILIES.load(family), "c")


@pytest.mark.parametrize(
    ("family", "change", "length"),
    [
        ("llama", {}, None),
        ("llama", {"rope_scaling": YARN, "original_max_position_embeddings": 64}, None),
        ("llama", {"rope_scaling": {**LONGROPE, "original_max_position_embeddings": 64}}, 64),
        # Outside of the settings, as Phi-3's files have it, it counts before one inside.
        (
            "phi3",
            {
                "rope_scaling": {**LONGROPE, "original_max_position_embeddings": 32},
                "original_max_position_embeddings": 64,
            },
            64,
        ),
        ("phi3", {"rope_scaling": LONGROPE}, 4096),  # the class's own
        # Without one it is the model's own length, and there are no longer sequences.
        ("llama", {"rope_scaling": LONGROPE}, None),
        # By kind of layer only what lies inside counts; the shortest is the model's.
        (
            "olmo3",
            {
                "rope_parameters": {
                    FULL: {**LONGROPE, "original_max_position_embeddings": 64},
                    SLIDING: {**LONGROPE, "original_max_position_embeddings": 96},
                },
                "original_max_position_embeddings": 16,
            },
            64,
        ),
    ],
)
def test_original_length(family: str, change: dict[str, Any], length: int | None) -> None:
    values = checked({"max_position_embeddings": 8192, **change}, "c")
    assert original_length(values, FAMILIES.load(family)) == length


def test_scores_of_longrope_know_how_much_longer_the_model_is_now(tmp_path: Path) -> None:
    rope = {**LONGROPE, "original_max_position_embeddings": 64}
    base = BaseModel.open(tiny.write_base(tmp_path / "base", rope_scaling=rope))
    assert base.dimensions.max_position_embeddings == 64
    assert base.library_config["max_position_embeddings"] == 128
    config = {**tiny.LLAMA, "rope_scaling": rope}
    del config["max_position_embeddings"]  # then it is the one of the library's own class
    (base.directory / "config.json").write_text(json.dumps(config))
    base = BaseModel.open(base.directory)
    assert base.dimensions.max_position_embeddings == 64
    assert base.library_config["max_position_embeddings"] == 2048


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


def test_what_other_families_read_does_not_reach_libraries(tmp_path: Path) -> None:
    """Llama of transformers would keep a ``logit_scale`` as an attribute, and not apply it."""
    others = {"logit_scale": 0.5, "logits_scaling": 2.0, "embedding_multiplier": 3.0}
    base = BaseModel.open(
        tiny.write_base(tmp_path / "base", sliding_window=8, query_pre_attn_scalar=4, **others)
    )
    keys = {*others, "sliding_window", "query_pre_attn_scalar"}
    assert not keys & set(base.library_config)


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
    | {"hidden_activation", "max_window_layers", "original_max_position_embeddings"}
    | {"partial_rotary_factor", "rotary_pct"}
)
#: Of a family that has kinds of layers, soft caps, and layers that do not rotate.
MORE: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 16, "attn_logit_softcapping": 50.0, "sliding_window": 8},
    "gemma3_text": {"rope_local_base_freq": 1e4, "sliding_window_pattern": 2},
    "smollm3": {"no_rope_layers": [1, 0], "no_rope_layer_interval": 2},
    "granite": {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "attention_multiplier": 0.2},
    "cohere": {"logit_scale": 0.1, "use_qk_norm": False, "tie_word_embeddings": True},
    "gpt_neox": {"rotary_pct": 0.25, "rotary_emb_base": 10000, "use_parallel_residual": True},
    "phi3": {"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 64},
}


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
    with pytest.raises(CheckpointError, match=rf"{name} is a link that leads nowhere"):
        BaseModel.open(directory).check_weights()


@given(st.sampled_from(sorted(MORE)), st.data())
def test_any_value_of_a_familys_own_settings(
    tmp_path_factory: pytest.TempPathFactory, model_type: str, data: st.DataObject
) -> None:
    settings = {**tiny.LLAMA, **MORE[model_type], "model_type": model_type}
    settings[data.draw(st.sampled_from(sorted({*MORE[model_type], *KEYS})))] = data.draw(anything)
    directory = tmp_path_factory.getbasetemp() / "fuzzed"
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(settings))
    try:
        assert BaseModel.open(directory).library_config["hidden_size"] == 64
    except OtterError as error:
        assert "\n" not in str(error)
