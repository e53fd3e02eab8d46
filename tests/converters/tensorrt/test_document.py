"""L0: docs/tensorrt.md knows every builder and option; ``inspect`` survives any ``options``."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export.cli.inspect import _engine
from otter_export.cli.target_options import _flag
from otter_export.converters.tensorrt.builders import BUILDERS, HEAD_SIZES, RTX
from otter_export.converters.tensorrt.options import TensorRTOptions
from otter_export.inspection import EngineSummary, inspect
from otter_export.precision import TENSORRT
from tests.command_line import Cli
from tests.converters.tensorrt.conftest import TinyEngine
from tests.dummy_engine import write_engine


@pytest.fixture(scope="module")
def document(repository: Path) -> str:
    return (repository / "docs" / "tensorrt.md").read_text()


def test_builders_options_and_precisions_are_described(document: str) -> None:
    for name in BUILDERS:
        assert f"| `{name}` |" in document, name
    for field in dataclasses.fields(TensorRTOptions):
        assert f"`{_flag(field)}" in document, field.name
    for precision in TENSORRT:
        assert f"`{precision}`" in document, precision
    assert ", ".join(RTX.capabilities) in document
    assert ", ".join(RTX.default_capabilities) in document
    *first, last = map(str, HEAD_SIZES)
    assert f"{', '.join(first)} or {last}" in document.replace("\n", " ")


def test_defaults_are_those_of_the_code(document: str) -> None:
    for field in dataclasses.fields(TensorRTOptions):
        if type(field.default) is int:
            (row,) = (r for r in document.splitlines() if r.startswith(f"| `{_flag(field)}`"))
            assert str(field.default) in row.split("|")[3], row


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)


@given(
    profiles=json_values
    | st.lists(st.fixed_dictionaries({}, optional={"name": json_values, "max": json_values})),
    layers=json_values,
)
def test_inspect_survives_any_options(
    tmp_path_factory: pytest.TempPathFactory, profiles: object, layers: object
) -> None:
    directory = write_engine(tmp_path_factory.getbasetemp() / "inspected-engine")
    path = directory / "engine.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "options": {"profiles": profiles, "layers": layers}}))
    summary = inspect(directory)
    assert isinstance(summary, EngineSummary)
    assert "layer" in _engine(summary)


def test_inputs_and_outputs_are_described(repository: Path, engines: dict[str, TinyEngine]) -> None:
    """The table of docs/engine.md against an engine."""
    text = (repository / "docs" / "engine.md").read_text()
    section = text.partition("of the `trt` target, cache form `in_place`\n")[2].partition("\n## ")[
        0
    ]
    manifest = engines["bf16"].manifest
    sizes = {
        "batch": "B",
        "step": "S",
        "kept": "R",
        88: "C",
        16: "e",
        128: "V",
        1: "H\u2032kv",
        2: "Hkv",
    }
    rows = [row.split(" | ") for row in section.splitlines() if row.startswith("| `")]
    described = {row[0].strip("| `").split("`")[0]: row for row in rows}
    for spec in manifest.inputs:
        row = described[re.sub(r"\.\d+\..*", ".N.key", spec.name)]
        assert row[1].strip("`") == {"bfloat16": "E"}.get(spec.dtype, spec.dtype), spec.name
        shape = [str(sizes[size]) for size in spec.shape]
        if spec.name == "attention_mask":
            shape[1] = "1"
        assert row[2] == f"`[{', '.join(shape)}]`", spec.name
    for option in ("capacity", "max_step", "builder", "builder_version", "compute_capabilities"):
        assert option in manifest.options and f"{option}`" in section


def test_help_of_a_target_has_its_options(cli: Cli) -> None:
    shown = cli("build", "--target", "trt", "--help").stdout
    for field in dataclasses.fields(TensorRTOptions):
        assert _flag(field) in shown, field.name
    assert "--ep" not in shown
    plain = cli("build", "--help").stdout
    assert "--target NAME --help" in plain and "--sm" not in plain
