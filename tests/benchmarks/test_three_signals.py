"""L5: benchmarks/three_signals.py on a tiny base: every run, the guard, the table."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from otter_export.cli.main import main
from tests import tiny

three_signals = pytest.importorskip("benchmarks.three_signals", reason="needs torch")


def texts(folder: Path) -> dict[str, tuple[Path, Path]]:
    """A file to learn from and one to be tested on, for each signal."""
    good, bad = (" ".join(f"w{w}" for w in range(at, at + 7)) for at in (3, 10))
    lines = {
        "ahead": [{"text": f"{good} {bad}"}, {"text": f"{bad} {good}"}] * 6,
        "harmless": [{"text": good, "label": "expert"}, {"text": bad, "label": "anti"}] * 6,
        "reward": [{"text": good, "score": 0.8}, {"text": bad, "score": -0.8}] * 6,
    }
    found = {}
    for name, some in lines.items():
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in some))
        found[name] = (path, path)
    return found


def test_all_three_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[str] = []

    def run(arguments: Sequence[str]) -> None:
        commands.append(Path(arguments[1 + (arguments[0] == "insert")]).name)
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert not ended.value.code

    monkeypatch.setattr(three_signals, "run", run)
    kinds = {**three_signals.SIGNALS, "ahead": ("medusa:identity:2", "drafts")}
    monkeypatch.setattr(three_signals, "SIGNALS", kinds)
    heads = {"hidden_size": 96, "num_attention_heads": 6, "num_key_value_heads": 3}
    base = tiny.write_base(tmp_path / "base", **heads)
    options = argparse.Namespace(
        steps=1, batch_tokens=64, learning_rate=0.01, reward_weight=2.0, first_layer=1,
        hidden_size=16, items=4,
    )  # fmt: skip
    runs = three_signals.Runs(tmp_path, base, texts(tmp_path), options)
    found = runs.all()
    alone = ["alone-ahead", "alone-harmless", "alone-reward"]
    assert commands == ["start", *alone, "turn-2-harmless", "turn-3-reward", "together"]
    assert runs.all() == found and len(commands) == 7, "what is there is not made again"
    assert all(one["same"] for one in (found["in turn"]["ahead"], found["in turn"]["harmless"]))
    rows = three_signals.table(found)
    assert [row["signal"] for row in rows] == ["ahead", "harmless", "reward"]
    assert rows[0]["in turn / alone"] == 1, "the drafts learned first, as they do alone"
    assert rows[2]["together / alone"] == pytest.approx(rows[2]["together"] / rows[2]["alone"])
