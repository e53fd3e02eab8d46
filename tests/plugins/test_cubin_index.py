"""L0: an index of kernels is data from strangers: one clear error, nothing outside is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export.errors import EngineError
from otter_export.plugins.cubin_index import Cubin, CubinIndex
from otter_export.plugins.tiles import TILES

CONTENT = b"\x7fELF and more"


def _index(directory: Path) -> CubinIndex:
    """An index of two made-up kernels, written with their files."""
    cubins = []
    for architecture in ("sm_80", "sm_90a"):
        file = f"{architecture[:5]}/float16_x.cubin"
        (directory / file).parent.mkdir(parents=True)
        (directory / file).write_bytes(CONTENT)
        digest = hashlib.sha256(CONTENT).hexdigest()
        cubins.append(
            Cubin(file, architecture, "float16", True, TILES[0], "k", 4096, len(CONTENT), digest)
        )
    index = CubinIndex(directory, "triton 3.9.0", tuple(cubins))
    index.save()
    return index


def _edit(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = directory / "otter_linear.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_round_trip(tmp_path: Path) -> None:
    index = _index(tmp_path)
    assert CubinIndex.load(tmp_path) == index
    assert index.compute_capabilities == (80, 90)
    assert index.read(index.cubins[0]) == CONTENT


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("file", "../float16.cubin"),
        ("file", "/etc/passwd"),
        ("file", "sm_80/../../x.cubin"),
        ("file", "sm_80/x.cubin\n"),
        ("file", None),
        ("architecture", "sm_"),
        ("architecture", "compute_80"),
        ("dtype", "float32"),
        ("dtype", ["float16"]),
        ("aligned", 1),
        ("symbol", "k; rm"),
        ("shared_bytes", -1),
        ("shared_bytes", 1 << 40),
        ("shared_bytes", True),
        ("size", 1.5),
        ("size", 1 << 40),
        ("sha256", "00"),
        ("tile", None),
        ("tile", {"rows": 16}),
        ("tile", {"rows": 0, "outs": 16, "ins": 16, "warps": 4, "stages": 2}),
        ("tile", {"rows": 16, "outs": 16, "ins": 16, "warps": 64, "stages": 2}),
    ],
)
def test_hostile_entries_are_one_error(tmp_path: Path, field: str, value: object) -> None:
    _index(tmp_path)
    _edit(tmp_path, lambda data: data["cubins"][1].update({field: value}))
    with pytest.raises(EngineError, match="is malformed: ") as error:
        CubinIndex.load(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data.pop("cubins"), "is malformed"),
        (lambda data: data.update(cubins=[]), "not empty"),
        (lambda data: data.update(cubins={"a": 1}), "must be an object"),
        (lambda data: data["cubins"].append(data["cubins"][0]), "different files"),
        (lambda data: data["cubins"][0].pop("sha256"), "is malformed"),
        (lambda data: data.update(version=2), "not this release's"),
        (lambda data: data["arguments"].pop(), "not this release's"),
        (lambda data: data.update(format="otter"), "is not an index"),
    ],
)
def test_other_content_is_one_error(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    _index(tmp_path)
    _edit(tmp_path, change)
    with pytest.raises(EngineError, match=message):
        CubinIndex.load(tmp_path)


@given(
    data=st.binary(max_size=60) | st.sampled_from([b"[]", b"null", b'{"format": 1}', b"[" * 9999])
)
def test_any_bytes_are_one_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    directory = tmp_path_factory.mktemp("index")
    (directory / "otter_linear.json").write_bytes(data)
    with pytest.raises(EngineError):
        CubinIndex.load(directory)


def test_damaged_kernels_are_one_error(tmp_path: Path) -> None:
    index = _index(tmp_path)
    path = tmp_path / index.cubins[0].file
    for content in (CONTENT[:-1], CONTENT + b"x", CONTENT[:-1] + b"x"):
        path.write_bytes(content)
        with pytest.raises(EngineError, match="is not the kernel that was built"):
            index.read(index.cubins[0])
    path.unlink()
    with pytest.raises(EngineError, match="cannot be read: No such file"):
        index.read(index.cubins[0])


def test_a_link_out_of_the_engine_is_not_followed(tmp_path: Path) -> None:
    index = _index(tmp_path / "engine")
    outside = tmp_path / "outside.cubin"
    outside.write_bytes(CONTENT)
    path = tmp_path / "engine" / index.cubins[0].file
    path.unlink()
    path.symlink_to(outside)
    with pytest.raises(EngineError, match="leads outside the engine"):
        index.read(index.cubins[0])


def test_selection(tmp_path: Path) -> None:
    index = _index(tmp_path)
    by_device = {c: index.select(c, "float16")[0].architecture for c in (80, 86, 87, 89, 90)}
    assert by_device == {80: "sm_80", 86: "sm_80", 87: "sm_80", 89: "sm_80", 90: "sm_90a"}
    for capability in (75, 100, 103, 120):
        with pytest.raises(EngineError, match=f"Build with --sm {capability}, or with --no-plugin"):
            index.select(capability, "float16")
