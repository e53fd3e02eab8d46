"""L0: price against quality: the shapes, what is kept of them, a row and the plot."""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import record, shape_quality
from benchmarks.shape_quality import Cell
from examples.sentiment.judges import Verdict
from examples.sentiment.material import Material
from tests import tiny

BUDGET = {"steps": 2, "batch_tokens": 32, "learning_rate": 1e-3, "items": 4, "prompts": 2}


def test_every_shape_once_and_one_probe() -> None:
    names = [cell.name for cell in shape_quality.cells([0, 15, 30], 30)]
    assert names == [f"from layer {n}, {a}" for a in ("own", "shared") for n in (0, 15)] + ["probe"]
    assert shape_quality.cells([0], 30)[0].channel.first_layer == 0
    assert len(shape_quality.cells([0, 15], 30)) == 4


def test_what_a_cell_gave_is_kept_for_the_same_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []

    def train(directory: Path, *_: Any) -> dict[str, Any]:
        trained.append(directory.parent.name)
        return {"correlation": {"100": 0.5}}

    monkeypatch.setattr(shape_quality, "train", train)
    monkeypatch.setattr(shape_quality, "build", lambda checkpoint, directory: directory)
    monkeypatch.setattr(shape_quality, "write", lambda *_: ["text"])
    base = tiny.write_base(tmp_path / "base", num_attention_heads=8, num_key_value_heads=4)
    material = Material(base, *(tmp_path / name for name in ("train", "probe", "test")))
    options = argparse.Namespace(**BUDGET, max_tokens=3, out=tmp_path / "out")
    cell = Cell("from layer 1, shared", 1, "shared")
    first = shape_quality.make(cell, material, options)
    assert shape_quality.make(cell, material, options) == first
    assert trained == [cell.name]
    options.steps = 3
    shape_quality.make(cell, material, options)
    assert trained == [cell.name] * 2


def test_a_row_and_the_plot() -> None:
    shapes = shape_quality.cells([0, 1, 2], 2)
    generator = np.random.default_rng(0)
    texts = [shape_quality.UNGUIDED, *(cell.name for cell in shapes)]
    scores = {t: Verdict(generator.random(6), generator.random(6), 1.0) for t in texts}
    unguided = scores[shape_quality.UNGUIDED].vader
    scores[shapes[0].name] = Verdict(unguided + 0.25, generator.random(6), 1.0)
    priced = [
        {
            "shape": f"{cell.name}/{shape_quality.ENGINE}",
            "rows": rows,
            "ratio to the base": 1.5 - i / 10,
        }
        for i, cell in enumerate(shapes)
        for rows in (1, 8)
    ]
    found = {"parameters": 7, "correlation": {"50": 0.4, "100": 0.6}, "training_seconds": 1.0}
    rows = [shape_quality.row_of(cell, found, priced, scores) for cell in shapes]
    assert rows[0]["vader"] == pytest.approx(0.25) and rows[0]["vader 95 %"] == "+0.25 +0.25"
    assert [row["8 rows / base"] for row in rows] == pytest.approx([1.5, 1.4, 1.3, 1.2, 1.1])
    assert "| from layer 1, shared | 7 | 0.40 | 0.60 | " in record.table(rows)
    figure = shape_quality.plot(shapes, rows, "1 rows / base")
    figure.savefig(image := io.BytesIO(), dpi=80)
    assert len(image.getvalue()) < record.MAX_PLOT_BYTES
    own, shared = (line.get_xdata() for line in figure.axes[0].lines)
    # From layers 0 and 1, and the probe, by their price.
    assert list(own) == pytest.approx([1.1, 1.4, 1.5])
    assert list(shared) == pytest.approx([1.1, 1.2, 1.3])
