"""L0: benchmarks/record.py against figures worked out by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks import record


def test_competitors_take_turns_and_the_warm_up_is_dropped() -> None:
    order = []
    #: The first figure of each is the warm-up's, and would change every statistic.
    figures = {"a": iter([999.0, 10, 30, 20]), "b": iter([1.0, 20, 15, 60])}

    def runs(name: str) -> float:
        order.append(name)
        return next(figures[name])

    a, b = record.in_turns({"a": lambda: runs("a"), "b": lambda: runs("b")}, rounds=3, against="a")
    assert order == ["a", "b"] * 4
    # The tenth percentile lies a fifth of the way from the least to the median.
    assert a == {"name": "a", "median": 20, "p10": pytest.approx(12), "ratio": 1}
    # Ratios by round are 2, 0.5 and 3; the ratio of the medians would be 1.
    assert b == {"name": "b", "median": 20, "p10": pytest.approx(16), "ratio": 2}


def test_it_needs_rounds_and_a_competitor_to_compare_with() -> None:
    with pytest.raises(ValueError, match="rounds is 0"):
        record.in_turns({"a": float}, rounds=0, against="a")
    with pytest.raises(KeyError, match="genai"):
        record.in_turns({"a": float}, rounds=1, against="genai")


def test_a_record_has_json_table_and_plot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = record.REPOSITORY / ".cache" / "engine"
    monkeypatch.setattr(
        sys, "argv", ["/usr/somewhere/run.py", str(inside), "--python=/opt/venv/bin/python", "7"]
    )
    monkeypatch.delattr(sys.modules["__main__"], "__spec__", raising=False)
    rows = [{"model": "135M", "ms": 13.25, "ratio": 0.844}, {"model": "480M", "bytes": 1234567}]
    figure = Figure(figsize=(4, 3))
    figure.add_subplot().plot([1, 2])
    path = record.write(
        "small", rows, versions={"peer": "1.2"}, figure=figure, folder=tmp_path, prompts=["a"]
    )
    report = json.loads(path.read_text())
    assert report["command"] == "python run.py .cache/engine --python=python 7"
    assert report["rows"] == rows and report["prompts"] == ["a"]
    assert report["versions"]["numpy"] == np.__version__ and report["versions"]["peer"] == "1.2"
    assert report["machine"]["cores"] >= 1 and report["machine"]["memory_bytes"] > 2**28
    text = (tmp_path / "small.md").read_text()
    assert text.startswith("`python run.py") and str(tmp_path) not in text
    assert text.splitlines()[2:] == [
        "| model | ms | ratio | bytes |",
        "| --- | --- | --- | --- |",
        "| 135M | 13.2 | 0.84 |  |",
        "| 480M |  |  | 1,234,567 |",
    ]
    assert (tmp_path / "small.png").read_bytes().startswith(b"\x89PNG")


def test_a_plot_is_small(tmp_path: Path) -> None:
    figure = Figure(figsize=(8, 6))
    noise = np.random.default_rng(0).random((500, 500))
    figure.add_subplot().imshow(noise, cmap="gray")
    with pytest.raises(ValueError, match=r"big\.png takes \d+ bytes"):
        record.write("big", [{"a": 1}], figure=figure, folder=tmp_path)
    assert not (tmp_path / "big.png").exists()


def test_gpus_by_name_and_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert record.gpus() == [] and "gpus" not in record.machine()
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100 80GB HBM3, 580.95'\n")
    program.chmod(0o755)
    assert record.machine()["gpus"] == ["NVIDIA H100 80GB HBM3, driver 580.95"]
    record.write("with", [{"a": 1}], folder=tmp_path)
    assert ", on NVIDIA H100 80GB HBM3, driver 580.95, " in (tmp_path / "with.md").read_text()
    program.write_text("#!/bin/sh\nexit 9\n")
    assert record.gpus() == []
