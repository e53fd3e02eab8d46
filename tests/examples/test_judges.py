"""L1: the demo's independent judges and its table of differences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from examples.sentiment import comparison, judges
from examples.sentiment.prompts import PROMPTS


def test_the_openings_are_many_and_distinct() -> None:
    assert len(PROMPTS) >= 20 and len(set(PROMPTS)) == len(PROMPTS)


def test_a_probe_finds_a_linear_rating_and_survives_the_disk(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    states = generator.normal(3.0, 2.0, (400, 12))
    ratings = states @ generator.normal(size=12) - 5.0
    probe = judges.Probe.fit(states[:300], ratings[:300], ridge=1e-3)
    # Nothing but ridge shrinkage stands between the fit and the truth.
    assert np.abs(probe(states[300:]) - ratings[300:]).max() < 1e-3
    probe.save(tmp_path / "probe.safetensors")
    loaded = judges.Probe.load(tmp_path / "probe.safetensors")
    # The file is float32: relative error 6e-8 of terms of size 30.
    assert np.abs(loaded(states) - probe(states)).max() < 1e-4


def test_the_shipped_probe_fits_the_base() -> None:
    probe = judges.Probe.load()
    assert probe.weight.shape == probe.mean.shape == probe.scale.shape == (576,)
    assert np.isfinite(probe.weight).all() and (probe.scale > 0).all()


def test_the_lexicon_tells_praise_from_blame() -> None:
    pytest.importorskip("vaderSentiment")
    praise, blame = judges.vader(["A wonderful, moving film.", "A boring, awful mess."])
    assert praise > 0.3 and blame < -0.3


def test_differences_are_paired_and_signed() -> None:
    def arm(shift: float):  # type: ignore[no-untyped-def]
        base = np.linspace(-1, 1, 30)
        return comparison.Arm("x", (), 1.0, base + shift, base + shift, base + shift, 1.0, 1.0)

    arms = {comparison.UNGUIDED: arm(0.0), comparison.GUIDED: arm(0.25)}
    found = comparison.differences(comparison.Comparison(arms, True), comparison.GUIDED)
    # A constant paired difference has an interval without width, however wide the spread is.
    assert {judge: np.round(v, 9).tolist() for judge, v in found.items()} == {
        judge: [0.25, 0.25, 0.25] for judge in ("reward", "vader", "probe")
    }
