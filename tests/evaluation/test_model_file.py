"""L2: engines whose files are links load and verify, and a model that cannot be read is named."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from otter_export.errors import EngineError
from otter_export.evaluation.model_file import load_model
from otter_export.load import load_engine
from otter_export.manifest import describe_file
from tests.command_line import Cli
from tests.evaluation.conftest import PROMPTS, Build, subject_of

QUICK = ("--quick", "--prompt", PROMPTS[0], "--max-tokens", 2)
MODEL, DATA, BASE = "model.onnx", "model.onnx.data", "base-1.safetensors"


def link_away(engine: Path, *names: str) -> None:
    """Put files where a cache of downloads has them, each under a name of its own."""
    for index, name in enumerate(names):
        blobs = engine.parent / f"blobs{index % 2}"
        blobs.mkdir(exist_ok=True)
        (engine / name).rename(blobs / f"{index}")
        (engine / name).symlink_to(f"../blobs{index % 2}/{index}")


@pytest.mark.parametrize(
    "names", [(DATA,), (BASE,), (MODEL,), (MODEL, DATA, BASE), (DATA, "-", MODEL)]
)
def test_an_engine_of_links_loads_and_verifies(
    cli: Cli, copied: Build, names: tuple[str, ...]
) -> None:
    engine = copied()
    expected = subject_of(engine).outputs
    link_away(engine, *(name for name in names if (engine / name).exists()))
    assert load_engine(engine).manifest.model_file == MODEL
    for one, other in zip(subject_of(engine).outputs, expected, strict=True):
        assert all((one[name] == other[name]).all() for name in one)
    result = cli("verify", engine, *QUICK)
    assert result.status == 0, result


def test_exact_kernels_of_an_engine_of_links(copied: Build) -> None:
    engine = copied("int8")
    link_away(engine, DATA)
    assert len(subject_of(engine).exact_outputs) == 2


def test_a_second_hard_link_is_no_attack(cli: Cli, copied: Build) -> None:
    """`triton --link` makes one of every file."""
    engine = copied()
    os.link(engine / DATA, engine.parent / "elsewhere")
    assert cli("verify", engine, *QUICK).status == 0


@pytest.mark.parametrize("spoilt", [b"", b"\x08\x01", b"not a model", b"\xff" * 100])
def test_a_model_that_cannot_be_read_is_a_failed_check(
    cli: Cli, copied: Build, spoilt: bytes
) -> None:
    """Its hashes may agree all the same."""
    engine = copied()
    (engine / MODEL).write_bytes(spoilt)
    manifest = json.loads((engine / "engine.json").read_text())
    for file in manifest["files"]:
        file |= vars(describe_file(engine, file["path"]))
    (engine / "engine.json").write_text(json.dumps(manifest))
    result = cli("verify", engine, *QUICK)
    assert result.status == 1 and "Traceback" not in result.stderr, result
    assert MODEL in result.stdout


def test_weights_outside_the_engine_are_refused(copied: Build) -> None:
    model = copied() / MODEL
    content = model.read_bytes().replace(DATA.encode(), b"../../../passwd")
    assert len(DATA) == len("../../../passwd")
    model.write_bytes(content)
    with pytest.raises(EngineError, match=r"names weights in '\.\./.*, outside the engine"):
        load_model(model)
