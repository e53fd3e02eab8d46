"""L1: the preference example's pairs; L5: all of its quick form, on a tiny base."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from examples.preference import comparison, demo, pairs, recipe
from examples.sentiment import judges
from examples.sentiment.material import Material
from otter_export.runtime.drafts import NONE
from tests import tiny
from tests.command_line import Cli


@given(st.lists(st.floats(-1, 1), max_size=30), st.floats(0.1, 1))
def test_pairs_differ_clearly_and_use_a_snippet_once(scores: list[float], margin: float) -> None:
    snippets = [{"text": f"{i}", "score": score} for i, score in enumerate(scores)]
    found = list(pairs.pairs(snippets, margin))
    for pair in found:
        assert scores[int(pair["chosen"])] - scores[int(pair["rejected"])] >= margin
    used = [pair[side] for pair in found for side in ("chosen", "rejected")]
    assert len(set(used)) == len(used)
    left = [score for i, score in enumerate(scores) if f"{i}" not in used]
    assert not left or max(left) - min(left) < margin


def test_both_texts_follow_the_prompt_of_the_chosen_one() -> None:
    good, bad = {"prompt": "Review:", "text": " good", "score": 0.9}, {"text": "bad", "score": -0.9}
    assert list(pairs.pairs([bad, good])) == [
        {"prompt": "Review:", "chosen": " good", "rejected": " bad"}
    ]
    plain = {**bad, "score": 0.9}, {**good, "score": -0.9}
    assert list(pairs.pairs(plain)) == [{"prompt": "", "chosen": "bad", "rejected": "good"}]


@pytest.fixture
def material(tmp_path: Path) -> Material:
    heads = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1}
    base = tiny.write_base(tmp_path / "base", num_hidden_layers=15, **heads)
    words = np.random.default_rng(0).integers(0, 10, (60, 6))
    lines = [
        {"text": " ".join(f"w{w + 10 * (i % 2)}" for w in row), "score": (i % 2) - 0.5}
        for i, row in enumerate(words)
    ]
    path = tmp_path / "rated.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Material(base, path, path, path)


@pytest.mark.slow
def test_the_quick_form(
    material: Material, tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe is of the real base's width, so the judges are not here."""

    def run(arguments: Sequence[str]) -> None:
        done = cli(*arguments)
        assert done.status == 0, done.stderr

    def judge(base: Path, arms: dict[str, list[str]]) -> dict[str, judges.Verdict]:
        lengths = {name: np.array([float(len(t)) for t in texts]) for name, texts in arms.items()}
        return {name: judges.Verdict(found, found, 2.0) for name, found in lengths.items()}

    monkeypatch.setattr(demo, "prepare", lambda report: material)
    monkeypatch.setattr(demo, "PROMPTS", ("w1 w2 w1 w2 w1", "w12 w13 w12 w13 w12"))
    monkeypatch.setattr(recipe, "run", run)
    monkeypatch.setattr(judges, "judge", judge)
    out = tmp_path / "out"
    done = CliRunner().invoke(demo.main, ["--quick", "--out", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "30 pairs to train on and 30 to test on, made from ratings" in done.output
    found = json.loads((out / "preference.json").read_text())
    assert found["training"]["results"]["test"]["items"] == 30
    ways = [*comparison.PLAIN, *comparison.GUIDED]
    assert list(found["ways"]) == ways and list(found["drafts"]) == list(comparison.GUIDED)
    for name in comparison.GUIDED:
        assert found["ways"][name]["same"] == {"lookup": 2, "auto": 2}
        assert {row["drafts"] for row in found["drafts"][name]} == {NONE, "lookup", "auto"}
        assert all(row["same"] == "1 of 1" for row in found["drafts"][name])
        assert f"  {name}: " in done.output
    # Sampling without a gate feeds every candidate; a tiny random base is undecided: none closes.
    assert found["ways"]["ARGS stochastic"]["single"] == 0
    assert found["ways"][comparison.PLAIN_GREEDY]["single"] == 1


def test_what_a_line_says_of_drafts() -> None:
    row = {"tokens a pass": 1.25, "right": 0.5, "same": "3 of 3"}
    times = {
        name: [
            {"drafts": NONE, **row, "right": None, "speed-up": 1.0},
            {"drafts": "lookup", **row, "tokens a pass": passes, "speed-up": speed},
        ]
        for name, speed, passes in (("slow", 0.9, 1.3), ("quick", 1.2, 1.3), ("noisy", 1.1, 1.25))
    }
    found = {name: {"single": 0.25, "same": {"lookup": 4}} for name in times}
    text = comparison.drafts(found, times, prompts=4)
    assert "slow: 25% of its tokens had one candidate; no faster with drafts (lookup: 0.90)" in text
    assert "quick: 25% of its tokens had one candidate; faster with drafts (lookup: 1.20)" in text
    assert "noisy: 25% of its tokens had one candidate; no faster" in text  # as many passes
    assert "4 of 4" in text and "0.800" in text
