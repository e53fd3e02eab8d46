"""L4: benchmarks/gate.py writes the same texts in every order, and compares with plain decoding."""

from __future__ import annotations

import pytest

from tests.runtime.fake_engine import FakeEngine, make_manifest

pytest.importorskip("matplotlib", reason="the demo's comparison draws")
gate = pytest.importorskip("benchmarks.gate", reason="the demo's judges need 'train'")


@pytest.mark.parametrize("method", ["args-greedy", "args-stochastic"])
def test_a_gate_above_everything_writes_what_plain_decoding_writes(method: str) -> None:
    engine = FakeEngine(make_manifest(eos_token_ids=()))
    ways = gate.methods(method, 4, 5.0, (0.0, 4.0, 9.0))
    assert list(ways) == ["plain", "0", "4", "9"]
    written = {name: gate.write_texts(engine, ["Hi", "Ho"], 8, way) for name, way in ways.items()}
    texts = {label: [result.text for result in one.results] for label, one in written.items()}
    assert texts["9"] == texts["plain"] != texts["0"]
    gated = {name: one.gated for name, one in written.items()}
    assert (gated["plain"], gated["0"], gated["9"]) == (0, 0, 1)
    assert 0 < gated["4"] < 1


def test_speeds_are_ratios_to_plain_decoding() -> None:
    engine = FakeEngine(make_manifest(eos_token_ids=()))
    ways = gate.methods("args-greedy", 4, 5.0, (0.0,))
    found = gate.speed(engine, ways, places=1, rounds=1, threads=1)
    assert found["plain"]["ratio"] == 1
    assert found["0"]["ratio"] > 0
