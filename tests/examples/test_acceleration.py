"""L0 and L3: the acceleration example's openings, and all of it in small on the real base."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from examples.acceleration.demo import BASE, QUICK
from examples.acceleration.material import FULL, openings, split
from examples.sentiment.material import Material
from tests import smollm2

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path: Path) -> Material:
    """Snippets alone; the base is not what is tested."""
    lines = (json.dumps({"text": f"Film {i} is a long and slow tale of {i}"}) for i in range(600))
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join([*lines, json.dumps({"text": "Too short."})]))
    return Material(tmp_path, path, path, path)


def test_openings_are_distinct_and_as_many_as_asked_for(source: Material) -> None:
    train, test = split(openings(source), FULL)
    assert len(set(train) | set(test)) == len(train) + len(test)
    for domain, sizes in FULL.items():
        assert tuple(sum(d == domain for d, _ in part) for part in (train, test)) == sizes


def test_openings_of_prose_are_the_first_words(source: Material) -> None:
    prose = list(openings(source)["prose"])
    assert prose[:2] == ["Film 0 is a long and slow", "Film 1 is a long and slow"]
    assert len(prose) == 600


def test_patterns_show_their_records(source: Material) -> None:
    repetitive = list(itertools.islice(openings(source)["repetitive"], 5))
    assert repetitive[0].count("open at 1, closed at 4") == 2
    assert all(
        text.count("{") == text.count("}") + (text[-1] == ":" and "{" in text)
        for text in repetitive
    )


@pytest.mark.slow
def test_all_of_it_in_small(tmp_path: Path) -> None:
    smollm2.prepared()
    command = [
        sys.executable,
        "-m",
        "examples.acceleration.demo",
        "--out",
        str(tmp_path),
        "--quick",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "acceleration.json").read_text())
    shares = {(row["begun as"], row["drafts"]): row for row in record["acceptance"]}
    for init in QUICK.initializations:
        for kind in FULL:
            assert {(init, f"{kind} {head}") for head in (1, 2, 3)} <= shares.keys()
    rows = {row["drafts"]: row for row in record["rows"] if row["text"] == "prose"}
    assert rows.keys() == {"none", "lookup", "auto", "ahead", BASE}
    assert all(row["same"] == "1 of 1" for name, row in rows.items() if name != BASE)
