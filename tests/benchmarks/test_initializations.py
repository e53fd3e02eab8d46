"""L2: the sweep of initialisations on a tiny base: what is made, kept, and made of it."""

from __future__ import annotations

import argparse
import concurrent.futures
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import initializations, record
from benchmarks.initializations import INITIALIZATIONS, Run
from examples.sentiment.material import Material
from tests import tiny


@pytest.fixture
def material(tmp_path: Path) -> Material:
    """Good texts have words from 10 to 19, bad ones those below."""
    heads = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1}
    base = tiny.write_base(tmp_path / "base", **heads)
    words = np.random.default_rng(0).integers(0, 10, (240, 6))
    lines = [
        {"text": " ".join(f"w{w + 10 * (i % 2)}" for w in row), "score": (i % 2) - 0.5}
        for i, row in enumerate(words)
    ]
    paths = [tmp_path / name for name in ("train.jsonl", "test.jsonl")]
    for path, some in zip(paths, (lines[:200], lines[200:]), strict=True):
        path.write_text("".join(json.dumps(line) + "\n" for line in some))
    return Material(base, paths[0], paths[0], paths[1])


def options(out: Path, **others: Any) -> argparse.Namespace:
    given = {"steps": [0, 4, 8], "seeds": [3], "jobs": 1, "items": 30, "texts": 100}
    sizes = {"batch_tokens": 128, "learning_rate": 0.01, "first_layer": 1}
    return argparse.Namespace(out=out, **given | sizes | others)


def test_a_sweep_and_what_is_kept_of_it(
    material: Material, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Processes of their own import torch again, which takes longer than all the rest.
    pool = concurrent.futures.ThreadPoolExecutor
    monkeypatch.setattr(
        concurrent.futures, "ProcessPoolExecutor", lambda jobs, mp_context: pool(jobs)
    )
    found = initializations.sweep(material, options(tmp_path / "out"))
    assert [run.name for run in found] == [f"{name}-3" for name in INITIALIZATIONS]
    assert not list((tmp_path / "out").glob("*/"))  # no checkpoint is left
    rows = initializations.rows_of(found, resamples=200)
    assert [row["steps"] for row in rows] == [0, 4, 8] * len(INITIALIZATIONS)
    begins = {row["initialisation"]: row for row in rows if row["steps"] == 0}
    # The score is that of every word: a probe of the last state knows it before it is trained.
    assert begins["probe"]["r at 100 %"] > 0.8 > begins["normal"]["r at 100 %"]
    assert begins["copy"]["tokens"] == 0 < begins["probe"]["tokens"]
    assert begins["copy"]["r at 100 %"] != rows[2]["r at 100 %"]
    monkeypatch.setattr(initializations, "make", None)  # nothing is made again
    assert initializations.sweep(material, options(tmp_path / "out")) == found
    other = options(tmp_path / "out", steps=[0, 2])
    assert initializations.kept(Run("copy", 3), other) is None


def test_resampled_correlations_are_those_of_the_repeated_items() -> None:
    generator = np.random.default_rng(0)
    x = generator.normal(size=20)
    y = x + generator.normal(size=20)
    counts = generator.multinomial(20, np.full(20, 0.05), 5)
    expected = [np.corrcoef(np.repeat(x, c), np.repeat(y, c))[0, 1] for c in counts]
    np.testing.assert_allclose(initializations.resampled(x, y, counts), expected, rtol=1e-9)


def test_intervals_of_seeds_and_of_items() -> None:
    # The example of Student's t: 1, 2, 3 have a standard error of 1 / sqrt(3).
    assert initializations.seeds_interval(np.array([1.0, 2.0, 3.0])) == pytest.approx(
        2.484, abs=1e-3
    )
    assert initializations.seeds_interval(np.array([1.0])) is None
    assert initializations.interval(np.array([9.0, *np.linspace(0, 1, 201)])) == "+0.03 +0.97"


def test_differences_are_to_copy_of_the_same_step_and_paired() -> None:
    scores = np.linspace(-1, 1, 40)
    noise = np.random.default_rng(1).normal(size=(3, 40))
    found = {}
    for name in INITIALIZATIONS:
        for seed in range(3):
            # All have the same noise, but copy a little more of it.
            rewards = scores + noise[seed] * (1.0 if name == "copy" else 0.9)
            points = [
                {
                    "step": s,
                    "tokens": s * 10,
                    "rewards": {share: list(rewards) for share in initializations.SHARES},
                }
                for s in (0, 5)
            ]
            found[Run(name, seed)] = {"points": points, "scores": list(scores)}
    rows = initializations.rows_of(found, resamples=200)
    for row in rows:
        if row["initialisation"] == "copy":
            assert "- copy" not in row
            continue
        low, high = map(float, row["- copy, items 95 %"].split())
        assert 0 < low <= row["- copy"] <= high < 0.1
    low, high = map(float, rows[0]["items 95 %"].split())
    assert high - low > 0.1  # of the correlation itself, which is not paired
    figure = initializations.plot(rows)
    figure.savefig(image := io.BytesIO(), dpi=80)
    assert len(image.getvalue()) < record.MAX_PLOT_BYTES
