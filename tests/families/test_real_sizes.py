"""L5: a public size with random weights, by the commands of benchmarks/real_sizes.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.real_sizes import measure, write_base


@pytest.mark.slow
def test_insert_build_and_verify(tmp_path: Path) -> None:
    """The smallest public size; those of 1B take minutes."""
    base = write_base("Pythia-70m", 2, tmp_path / "base")
    steps = [step.step for step in measure(base, tmp_path)]
    assert steps == ["insert", "build int8", "verify --quick"]
