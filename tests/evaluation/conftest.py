"""Tiny engines to verify; each is built once and read only."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from otter_export.checkpoint import Checkpoint
from otter_export.evaluation.subject import Options, Subject
from otter_export.manifest import EngineManifest
from tests import built, tiny

#: Of different lengths, in the words of the tiny tokenizer.
PROMPTS = ("w5 w9 w30 w7 w44 w8 w9 w120 w3", "w100 w3 w4 w19 w77", "w8 w8 w21")
Build = Callable[..., Path]


@pytest.fixture(scope="session")
def built_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where checkpoints and engines lie side by side."""
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="session")
def engine(built_root: Path) -> Build:
    """``engine("int8", family="gpt2")`` is the path of an engine; read only."""

    def build(precision: str = "fp32", family: str = "llama") -> Path:
        name = built_root / family
        if not name.exists():
            built.random_checkpoint(name, family, signals=tiny.ALL_KINDS)
        directory = built_root / f"{family}-{precision}"
        if not directory.exists():
            built.build(Checkpoint.open(name), directory, precision=precision)
        return directory

    return build


@pytest.fixture
def copied(engine: Build, tmp_path: Path) -> Build:
    """The same as ``engine``, a copy to spoil, with its checkpoint beside it."""

    def copy(precision: str = "fp32", family: str = "llama") -> Path:
        source = engine(precision, family)
        for directory in (source, source.parent / family, source.parent / f"{family}-base"):
            shutil.copytree(directory, tmp_path / directory.name)
        return tmp_path / source.name

    return copy


def subject_of(directory: Path, **options: object) -> Subject:
    """An engine with its checkpoint, as the checks take it."""
    manifest = EngineManifest.load(directory)
    checkpoint = Checkpoint.open(directory.parent / manifest.source["checkpoint"])
    chosen = {"prompts": PROMPTS, "max_tokens": 6, **options}
    return Subject(directory, manifest, checkpoint, Options(**chosen))  # type: ignore[arg-type]
