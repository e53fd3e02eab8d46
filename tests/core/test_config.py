"""L0: otter_config.json round-trips, and whatever else it holds is one ConfigError."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export import config as config_file
from otter_export.config import ACTIVATION_BOUNDS, OtterConfig, read_json
from otter_export.engine_io import RESERVED_NAMES
from otter_export.errors import ConfigError
from otter_export.signals import SIGNALS, Signal

names = st.from_regex(r"[a-z][a-z0-9_]{0,63}", fullmatch=True).filter(
    lambda name: name not in RESERVED_NAMES
)
widths = st.integers(1, 1 << 20)


@st.composite
def signal_values(draw: st.DrawFn) -> Signal:
    kind = SIGNALS.load(draw(st.sampled_from(SIGNALS.names())))
    activation = draw(st.sampled_from(kind.activations))
    bounds = draw(st.sampled_from([None, ACTIVATION_BOUNDS[activation]]))
    heads = draw(st.integers(1, 64)) if kind.has_heads else 1
    drafted = draw(st.none() | st.integers(1, 1 << 20)) if kind.drafts else None
    residual = draw(st.booleans()) if kind.drafts else False
    return Signal(draw(names), kind.name, activation, bounds, heads, drafted, residual)


@st.composite
def configs(draw: st.DrawFn) -> OtterConfig:
    key_values = draw(st.integers(1, 1024))
    embedding = draw(st.sampled_from(config_file.EMBEDDINGS))
    return OtterConfig(
        hidden_size=draw(widths),
        intermediate_size=draw(widths),
        num_attention_heads=key_values * draw(st.integers(1, 1024)),
        num_key_value_heads=key_values,
        head_dim=draw(widths),
        embedding=embedding,
        initialization=draw(st.sampled_from(config_file.INITIALIZATIONS)),
        signals=tuple(draw(st.lists(signal_values(), min_size=1, unique_by=lambda s: s.name))),
        base_model_name_or_path=draw(st.none() | st.text(min_size=1)),
        first_layer=0 if embedding == "table" else draw(st.integers(0, 1 << 14)),
        attention=draw(st.sampled_from(config_file.ATTENTIONS)),
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)

EXAMPLE: dict[str, Any] = {
    "format": "otter",
    "version": 1,
    "base_model_name_or_path": None,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "head_dim": 64,
    "embedding": "projection",
    "initialization": "copy",
    "signals": [
        {"name": "reward", "kind": "value", "activation": "tanh", "bounds": [-1.0, 1.0]},
    ],
}
#: Paths into EXAMPLE, for fuzzing one field at a time.
FIELDS = [*((key,) for key in EXAMPLE), *(("signals", 0, key) for key in EXAMPLE["signals"][0])]


@given(configs())
def test_round_trip(config: OtterConfig) -> None:
    assert OtterConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_the_documented_example_is_read_and_written_as_it_stands() -> None:
    config = OtterConfig.from_json(EXAMPLE)
    assert config == OtterConfig(64, 192, 3, 1, 64)
    assert config.to_json() == EXAMPLE


@given(configs())
def test_a_later_version_is_written_where_it_is_needed(config: OtterConfig) -> None:
    written = config.to_json()
    default = (config.first_layer, config.attention) == (0, "own")
    default = default and config.initialization != "probe"
    residual = any(signal.residual for signal in config.signals)
    default = default and not residual
    assert written["version"] == (3 if residual else 1 if default else 2)
    assert ("first_layer" in written) is ("attention" in written) is not default


@pytest.mark.parametrize("name", ["first_layer", "attention"])
def test_version_1_has_no_shape(name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown field '{name}'"):
        OtterConfig.from_json({**EXAMPLE, name: {"first_layer": 0, "attention": "own"}[name]})


@pytest.mark.parametrize(
    ("version", "kind", "residual", "problem"),
    [
        (2, "medusa", True, r"signals\[0\] has an unknown field 'residual'"),
        (3, "value", True, r"signals\[0\] has an unknown field 'residual'"),
        (3, "medusa", 1, r"signals\[0\].residual must be true or false, got 1"),
    ],
)
def test_draft_heads_have_blocks_from_version_3_on(
    version: int, kind: str, residual: object, problem: str
) -> None:
    signal = {"name": "s", "kind": kind, "activation": "identity", "residual": residual}
    with pytest.raises(ConfigError, match=problem):
        OtterConfig.from_json({**EXAMPLE, "version": version, "signals": [signal]})


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"first_layer": -1}, "first_layer must be an integer from 0 to 16384, got -1"),
        ({"first_layer": True}, "first_layer must be an integer from 0 to 16384, got True"),
        ({"attention": "none"}, "attention is 'none'; accepted: own, shared"),
        ({"first_layer": 1, "embedding": "table"}, "embedding 'table' needs first_layer 0, got 1"),
    ],
)
def test_a_shape_that_is_none(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        OtterConfig.from_json({**EXAMPLE, "version": 2, **fields})


@given(json_values)
def test_any_json_is_a_config_error(data: object) -> None:
    with pytest.raises(ConfigError):
        OtterConfig.from_json(data)


@given(st.sampled_from(FIELDS), json_values | st.just(10**400))
def test_any_value_of_one_field_is_accepted_or_a_config_error(
    path: tuple[Any, ...], value: object
) -> None:
    data = json.loads(json.dumps(EXAMPLE))
    target = data
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    try:
        config = OtterConfig.from_json(data)
    except ConfigError as error:
        assert "\n" not in str(error).replace(repr(value), "")
    else:
        # What is accepted is kept: it is written back as it was read.
        again = OtterConfig.from_json(config.to_json())
        assert again == config


@pytest.mark.parametrize(
    "bounds", [[-(10**400), 10**400], [1.0, -1.0], [0.0, 0.0], [0, float("nan")], [None, 1], [1]]
)
def test_bounds_that_are_no_interval(bounds: object) -> None:
    data = json.loads(json.dumps(EXAMPLE))
    data["signals"][0]["bounds"] = bounds
    with pytest.raises(ConfigError, match=r"bounds must be null or \[low, high\]"):
        OtterConfig.from_json(data)


def test_all_problems_are_listed_at_once() -> None:
    data = {
        **EXAMPLE,
        "hidden_size": -1,
        "embedding": "rotary",
        "extra": 0,
        "signals": [{"name": "logits", "kind": "scalar", "bounds": [0, 2]}],
    }
    with pytest.raises(ConfigError) as caught:
        OtterConfig.from_json(data, "somewhere.json")
    message = str(caught.value)
    assert message.startswith("somewhere.json: ")
    for part in (
        "hidden_size must be an integer from 1",
        "embedding is 'rotary'",
        "unknown field 'extra'",
        "'logits' is reserved",
        "kind is 'scalar'; accepted: value, q_value, expert, medusa",
        "not guaranteed by activation 'identity'",
    ):
        assert part in message


@given(st.binary(max_size=200))
def test_read_json_of_any_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    try:
        expected = json.loads(content.decode("utf-8"))
    except ValueError:
        with pytest.raises(ConfigError, match=r"any\.json is not readable JSON"):
            read_json(path)
    else:
        assert repr(read_json(path)) == repr(expected)


def test_read_json_refuses_deep_and_large_files(tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text("[" * 200_000)
    with pytest.raises(ConfigError, match="not readable JSON"):
        read_json(path)
    with pytest.raises(ConfigError, match="at most 1000 are read"):
        read_json(path, limit_bytes=1000)
    with pytest.raises(ConfigError, match="does not exist"):
        read_json(tmp_path / "absent.json")
