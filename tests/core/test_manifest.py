"""L0: engine.json round-trips; damaged or hostile engine directories are one EngineError."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export.engine_io import TensorSpec
from otter_export.errors import EngineError
from otter_export.manifest import EngineManifest, describe_file
from otter_export.signals import Signal
from tests.dummy_engine import MODEL_BYTES, manifest, write_engine


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """A complete engine directory, but for its model, which is no graph."""
    return write_engine(tmp_path / "engine")


def change(engine: Path, **fields: Any) -> None:
    path = engine / "engine.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_round_trip(engine: Path) -> None:
    assert EngineManifest.load(engine) == manifest(engine)


#: What a name may have: NUL and half a surrogate pair are refused.
PRINTED = st.characters(exclude_categories=["Cs"], exclude_characters="\0")


@given(
    signals=st.lists(
        st.builds(
            Signal,
            name=st.from_regex(r"s[a-z0-9_]{0,9}", fullmatch=True),
            kind=st.sampled_from(["value", "q_value"]),
        ),
        min_size=1,
        unique_by=lambda s: s.name,
    ),
    eos=st.lists(st.integers(0, 127)),
    bos=st.none() | st.integers(0, 127),
    limit=st.integers(1, 1 << 20),
    inputs=st.lists(
        st.builds(
            TensorSpec,
            st.text(PRINTED, min_size=1),
            st.text(PRINTED),
            st.lists(st.integers(1, 99) | st.text(PRINTED, min_size=1)).map(tuple),
        )
    ),
)
def test_round_trip_of_any_manifest(
    tmp_path_factory: pytest.TempPathFactory,
    signals: list[Signal],
    eos: list[int],
    bos: int | None,
    limit: int,
    inputs: list[TensorSpec],
) -> None:
    directory = tmp_path_factory.getbasetemp() / "any-engine"
    write_engine(directory)
    expected = dataclasses.replace(
        manifest(directory),
        signals=tuple(signals),
        eos_token_ids=tuple(eos),
        bos_token_id=bos,
        max_sequence_length=limit,
        inputs=tuple(inputs),
    )
    expected.save(directory)
    assert EngineManifest.load(directory) == expected


def test_signals_by_name(engine: Path) -> None:
    loaded = EngineManifest.load(engine)
    assert loaded.signal(None) is loaded.signal("reward")
    with pytest.raises(EngineError, match="no signal 'style'; its signals: reward"):
        loaded.signal("style")


def test_files_are_described_in_blocks(tmp_path: Path) -> None:
    content = bytes(range(256)) * (40 << 10)  # 10 MiB: three blocks
    (tmp_path / "weights").write_bytes(content)
    seen: list[int] = []
    described = describe_file(tmp_path, "weights", seen.append)
    assert described.size == len(content) == sum(seen)
    assert len(seen) == 3
    assert described.sha256 == hashlib.sha256(content).hexdigest()


def test_a_missing_or_shortened_file(engine: Path) -> None:
    (engine / "model.onnx").write_bytes(MODEL_BYTES[:-1])
    with pytest.raises(EngineError, match=r"has \d+ bytes, engine.json says \d+: .* damaged"):
        EngineManifest.load(engine)
    (engine / "model.onnx").unlink()
    with pytest.raises(EngineError, match=r"is incomplete: model\.onnx is missing"):
        EngineManifest.load(engine)


@pytest.mark.parametrize("path", ["/etc/passwd", "../secret", "a/../../secret", "..\\secret", ""])
def test_files_cannot_lie_outside(engine: Path, path: str) -> None:
    (engine.parent / "secret").write_bytes(b"")
    entry = {"path": path, "size": 0, "sha256": ""}
    change(engine, files=[entry])
    with pytest.raises(EngineError):
        EngineManifest.load(engine)


FIELDS = [field.name for field in dataclasses.fields(EngineManifest)]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.sampled_from(FIELDS), json_values)
def test_any_value_of_one_field_loads_or_is_an_engine_error(
    tmp_path_factory: pytest.TempPathFactory, field: str, value: object
) -> None:
    directory = tmp_path_factory.getbasetemp() / "fuzzed-engine"
    write_engine(directory)
    change(directory, **{field: value})
    try:
        EngineManifest.load(directory)
    except EngineError as error:
        assert str(directory) in str(error)


@pytest.mark.parametrize("field", FIELDS)
def test_every_field_without_a_default_is_required(engine: Path, field: str) -> None:
    data = json.loads((engine / "engine.json").read_text())
    del data[field]
    (engine / "engine.json").write_text(json.dumps(data))
    optional = {"builder", "source", "options", "mends"}
    if field in optional:
        EngineManifest.load(engine)
    else:
        with pytest.raises(EngineError, match="malformed"):
            EngineManifest.load(engine)


@pytest.mark.parametrize(
    "fields",
    [
        {"eos_token_ids": [float("inf")]},
        {"files": [{"path": "model.onnx", "size": float("inf"), "sha256": ""}]},
        {"max_sequence_length": 0},
        {"max_sequence_length": "64"},
        {"max_sequence_length": (1 << 20) + 1},
        {"base": []},
        {"base": {"vocab_size": 128}},
        {"channel": None},
        {"inputs": [{"name": "x"}]},
        {"unknown_field": 1},
    ],
)
def test_malformed_fields(engine: Path, fields: dict[str, Any]) -> None:
    change(engine, **fields)
    with pytest.raises(EngineError, match="malformed"):
        EngineManifest.load(engine)


@pytest.mark.parametrize("part", ["base", "channel"])
@pytest.mark.parametrize("value", [True, 0, -1, 2.0, "2", 1 << 31, 10**12, 10**30])
def test_sizes_have_a_limit(engine: Path, part: str, value: object) -> None:
    """A name for each of 10**12 layers would be all of the memory, before a model is read."""
    sizes = json.loads((engine / "engine.json").read_text())[part]
    for name in {"num_hidden_layers", "num_key_value_heads", "head_dim"} & set(sizes):
        if part == "channel" and name != "num_key_value_heads":
            continue
        change(engine, **{part: {**sizes, name: value}})
        with pytest.raises(EngineError, match=f"{name} must be an integer from 1 to|signals"):
            EngineManifest.load(engine)


#: A shape, and the channel's cache tensors over two layers.
SHAPES = [
    ({}, ["0.key", "0.value", "1.key", "1.value"]),  # of older releases
    ({"first_layer": 0, "attention": "own"}, ["0.key", "0.value", "1.key", "1.value"]),
    ({"first_layer": 1, "attention": "own"}, ["1.key", "1.value"]),
    ({"first_layer": 0, "attention": "shared"}, ["0.value", "1.value"]),
    ({"first_layer": 1, "attention": "shared"}, ["1.value"]),
    ({"first_layer": 2, "attention": "own"}, []),
    ({"first_layer": 2, "attention": "shared"}, []),
]


@pytest.mark.parametrize(("shape", "parts"), SHAPES)
def test_the_caches_of_a_shape(engine: Path, shape: dict[str, Any], parts: list[str]) -> None:
    channel = json.loads((engine / "engine.json").read_text())["channel"]
    change(engine, channel={**channel, **shape})
    manifest = EngineManifest.load(engine)
    assert manifest.channel_shape == (
        shape.get("first_layer", 0),
        shape.get("attention", "own"),
    )
    manifest.require_form("read_only")
    io = manifest.io
    for names, tensors in (("otter_key_values", io.inputs()), ("otter_present", io.outputs())):
        found = [name for name in tensors if name.startswith("otter_")]
        assert found == [f"{names}.{part}" for part in parts]
    assert [cache.heads for cache in io.caches] == [2, 1][: 1 + bool(parts)]
    assert all(len(c.pasts()) == len(c.presents()) for c in io.caches)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"first_layer": 3}, "first_layer must be at most 2"),
        ({"first_layer": -1}, "first_layer must be an integer from 0"),
        ({"first_layer": True}, "first_layer must be an integer from 0"),
        ({"first_layer": 10**12}, "first_layer must be an integer from 0"),
        ({"attention": "both"}, "accepted: own, shared"),
        ({"attention": None}, "accepted: own, shared"),
    ],
)
def test_a_shape_that_is_none(engine: Path, shape: dict[str, Any], message: str) -> None:
    channel = json.loads((engine / "engine.json").read_text())["channel"]
    change(engine, channel={**channel, **shape})
    with pytest.raises(EngineError, match=message):
        EngineManifest.load(engine)


def test_a_cache_that_cannot_be_stored_is_named(engine: Path) -> None:
    data = json.loads((engine / "engine.json").read_text())
    shape = {"first_layer": 1, "attention": "shared"}
    change(engine, channel={**data["channel"], **shape}, inputs=data["inputs"][:5])
    with pytest.raises(
        EngineError, match=r"input past_key_values\.0\.key is|otter_key_values\.1\.v"
    ):
        EngineManifest.load(engine).require_form("read_only")
