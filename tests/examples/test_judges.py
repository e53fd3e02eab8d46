"""L1: the demo's independent judges and its table of differences."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from examples.sentiment import comparison, judges
from examples.sentiment.material import Material
from examples.sentiment.prompts import PROMPTS
from otter_export import generate
from otter_export.evaluation.written import Written
from tests.runtime.fake_engine import FakeEngine


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
        scores = np.linspace(-1, 1, 30) + shift
        results = tuple(dataclasses.replace(one, rewards=(score,)) for score in scores)
        return comparison.Arm(results, 1.0, scores, scores, 1.0)

    one = generate(FakeEngine(), [[3, 1]], max_tokens=1)[0]

    arms = {comparison.UNGUIDED: arm(0.0), comparison.GUIDED: arm(0.25)}
    found = comparison.differences(comparison.Comparison(arms, True), comparison.GUIDED)
    # A constant paired difference has an interval without width, however wide the spread is.
    assert {judge: np.round(v, 9).tolist() for judge, v in found.items()} == {
        judge: [0.25, 0.25, 0.25] for judge in ("reward", "vader", "probe")
    }


def test_a_comparison_has_every_judge_by_text(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: dict[str, list[str]] = {}

    def judge(base: Path, arms: dict[str, list[str]]) -> dict[str, judges.Verdict]:
        texts.update(arms)
        lengths = {name: np.array([float(len(t)) for t in some]) for name, some in arms.items()}
        return {name: judges.Verdict(n, -n, 7.0) for name, n in lengths.items()}

    monkeypatch.setattr(judges, "judge", judge)
    results = generate(FakeEngine(), [[3, 1], [4, 1, 5]], max_tokens=3)
    material = Material(*[Path()] * 4)
    arm = comparison._judge(material, {"one": Written(tuple(results), 2.0)})["one"]
    lengths = [len(text) for text in texts["one"]]
    assert arm.vader.tolist() == lengths == [-score for score in arm.probe]
    assert (arm.perplexity, arm.seconds, arm.tokens) == (7.0, 2.0, 6)
    assert arm.reward.tolist() == [np.mean(result.rewards) for result in results]
