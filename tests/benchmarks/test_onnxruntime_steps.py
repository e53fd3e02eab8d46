"""L2: steps of ONNX Runtime against the base's, on the CPU: what is bound runs, at every shape."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import record
from benchmarks.gpu import onnxruntime_steps
from tests import built


def test_every_shape_runs_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_steps, "ROUNDS", 1)
    monkeypatch.setattr(onnxruntime_steps, "WARMUP", 0)
    # A record of a CPU in the place of a GPU's would go unnoticed.
    monkeypatch.delattr(record, "write")
    built.random_checkpoint(tmp_path / "ck")
    given = [str(tmp_path / "ck"), "--provider", "cpu", "--precision", "fp32", "--past", "3"]
    result = CliRunner().invoke(onnxruntime_steps.main, given, catch_exceptions=False)
    head, _, *rows = (line.strip("| ").split(" | ") for line in result.output.splitlines())
    cells = [dict(zip(head, row, strict=True)) for row in rows]
    shapes = [(int(row["sequences"]), int(row["tokens"])) for row in cells]
    assert shapes == [(b, s) for b in (1, 8) for s in (1, 4, 8, 16)]
    for row in cells:
        assert row["model"] == "ck" and float(row["widened ms"]) > 0
        assert int(row["widened nodes"].replace(",", "")) > int(row["base nodes"].replace(",", ""))
