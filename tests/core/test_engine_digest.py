"""L0: one digest stands for an engine; another or a changed one is refused before it is loaded."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from otter_export import load_engine
from otter_export.engine_digest import check_engine, engine_digest
from otter_export.errors import EngineError, OtterError, RequestError
from tests import built, dummy_engine, tiny
from tests.command_line import Cli


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    """All of its files are listed, as a build leaves them."""
    directory = dummy_engine.write_engine(tmp_path / "engine")
    (directory / "tokenizer_config.json").unlink()
    return directory


def test_it_is_the_hash_of_the_manifest(engine: Path, cli: Cli) -> None:
    result = cli("inspect", engine, "--sha256")
    expected = hashlib.sha256((engine / "engine.json").read_bytes()).hexdigest()
    assert (result.status, result.stdout) == (0, expected + "\n")
    read: list[int] = []
    check_engine(engine, expected.upper(), read.append)
    assert sum(read) == sum(f.stat().st_size for f in engine.iterdir() if f.name != "engine.json")


def change_the_model(engine: Path) -> None:
    """Of the same size: this is what a load without a digest does not see."""
    (engine / "model.onnx").write_bytes(dummy_engine.MODEL_BYTES.swapcase())


def rewrite_everything(engine: Path) -> None:
    """The model and the hashes, as whoever may write to the directory can."""
    change_the_model(engine)
    dummy_engine.manifest(engine).save(engine)


def add_a_file(engine: Path) -> None:
    (engine / "external").mkdir()
    (engine / "external" / "weights.bin").write_bytes(b"x")


def add_a_link_to_a_directory(engine: Path) -> None:
    (engine / "external").symlink_to(engine.parent, target_is_directory=True)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (change_the_model, r"model\.onnx is not of the engine .*: its SHA-256 differs"),
        (rewrite_everything, r"the SHA-256 of its engine\.json is \w{64}, expected \w{64}"),
        (add_a_file, r"external/weights\.bin is not of the engine"),
        (add_a_link_to_a_directory, r"external is not of the engine"),
    ],
)
def test_another_engine_is_refused(
    engine: Path,
    change: Callable[[Path], None],
    said: str,
    cli: Cli,
) -> None:
    digest = engine_digest(engine)
    check_engine(engine, digest)
    change(engine)
    with pytest.raises(EngineError, match=said):
        load_engine(engine, sha256=digest)
    result = cli("generate", engine, "--prompt", "a", "--sha256", digest)
    assert result.status == 2 and re.search(said, result.stderr)


def test_links_to_the_listed_files_are_the_files(engine: Path, tmp_path: Path) -> None:
    """As a download cache has them."""
    digest = engine_digest(engine)
    for name in ("model.onnx", "tokenizer.json"):
        (engine / name).rename(tmp_path / name)
        (engine / name).symlink_to(tmp_path / name)
    check_engine(engine, digest)


@pytest.mark.parametrize("digest", ["", "abc", "g" * 64, "0" * 65, None, 7])
def test_what_is_no_digest(engine: Path, digest: object) -> None:
    with pytest.raises(RequestError, match="sha256 must be 64 hexadecimal digits"):
        check_engine(engine, digest)  # type: ignore[arg-type]


def test_a_checkpoint_has_none(tmp_path: Path) -> None:
    checkpoint = tiny.write_checkpoint(tmp_path / "ck")
    for call in (engine_digest, lambda path: load_engine(path, sha256="0" * 64)):
        with pytest.raises(OtterError, match="it is not an engine"):
            call(checkpoint)


def test_the_engine_of_the_digest_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("mobius", reason="building engines needs otter-export[build]")
    engine = built.build(built.random_checkpoint(tmp_path / "ck"), tmp_path / "engine")
    copy = shutil.copytree(engine, tmp_path / "copy")
    loaded = load_engine(copy, sha256=engine_digest(engine))
    listed = json.loads((copy / "engine.json").read_text())["files"]
    assert loaded.manifest.vocab_size and len(listed) == len(list(copy.iterdir())) - 1
