"""Checkpoints that all tests of the graph share; building a base graph takes about a second."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from otter_export.checkpoint import Checkpoint
from tests import built, tiny
from tests.families import bases

#: The checkpoint with a random channel over a case of tests/families/bases.py, by its name.
Over = Callable[[str], Checkpoint]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """A checkpoint with a random channel for each family; read only."""
    root: Path = tmp_path_factory.mktemp("graph")
    return {
        family: built.random_checkpoint(
            root / family, family, signals=(tiny.REWARD, tiny.NEXT), seed=i
        )
        for i, family in enumerate(tiny.CONFIGS)
    }


@pytest.fixture(scope="session")
def llama(checkpoints: dict[str, Checkpoint]) -> Checkpoint:
    """D 64, m 96, H 4, Hkv 2, e 16; d' 16, m' 24, H' 2, H'kv 1."""
    return checkpoints["llama"]


@pytest.fixture(scope="session")
def gpt2(checkpoints: dict[str, Checkpoint]) -> Checkpoint:
    """D 64, m 256, H = Hkv 4, e 16; d' 16, m' 24, H' = H'kv 2."""
    return checkpoints["gpt2"]


@pytest.fixture(scope="session")
def table_llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Llama with an embedding table for the channel."""
    return built.random_checkpoint(tmp_path_factory.mktemp("table") / "ck", embedding="table")


@pytest.fixture(scope="session")
def over(tmp_path_factory: pytest.TempPathFactory) -> Over:
    """Each is made on first use; read only."""
    root: Path = tmp_path_factory.mktemp("cases")

    @functools.cache
    def made(name: str) -> Checkpoint:
        case = next(case for case in bases.CASES if case.name == name)
        base = bases.write_base(case, root / name / "base")
        signals = (tiny.REWARD, tiny.NEXT)
        return built.checkpoint_over(base, root / name / "checkpoint", signals=signals)

    return made
