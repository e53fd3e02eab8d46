"""L4: ``otter-export bench`` on a tiny engine: its fields, that its numbers agree, its refusals."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_export import ArgsGreedy, Plain, Request, generate, load_engine
from otter_export.cli import bench as bench_command
from otter_export.evaluation.benchmark import Plan, measure, run
from otter_export.evaluation.operator_shares import shares_of
from otter_export.evaluation.step_bytes import cache_bytes, stream_bandwidth, weight_bytes
from otter_export.evaluation.timed_engine import TimedEngine
from otter_export.manifest import EngineFile, EngineManifest
from otter_export.signals import Signal, kind_of
from tests.command_line import Cli
from tests.runtime.fake_engine import FakeEngine, make_manifest
from tests.runtime.tiny_model import LAYERS, make_model

PROMPT = "a film"


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "engine"
    make_model(seed=3).save(path)
    return path


def bench(cli: Cli, directory: Path, *options: object) -> dict[str, Any]:
    result = cli("bench", directory, "--prompt", PROMPT, "--quick", "--json", *options)
    assert result.status == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_fields_and_numbers_agree(engine_dir: Path, cli: Cli) -> None:
    report = bench(cli, engine_dir, "--weight", 4, "--top-k", 6, "--threads", 1)
    assert list(report) == [
        "engine",
        "machine",
        "guidance",
        "first_token",
        "alone",
        "batches",
        "operators",
        "floor",
    ]
    assert report["engine"]["signal"] == "reward" and report["engine"]["kind"] == "value"
    assert report["guidance"] == {"method": "args-greedy", "top_k": 6, "weight": 4.0}
    assert report["machine"]["threads"] == 1
    assert report["first_token"]["prompt_tokens"] == len(PROMPT)
    assert [(row["method"], row["requests"]) for row in report["alone"]] == [
        ("plain", 1),
        ("guided", 1),
    ]
    assert [row["requests"] for row in report["batches"]] == [4, 4]
    for plain, guided in (report["alone"], report["batches"]):
        # One row a token, and from one to k, twice over where a step has to be repeated.
        assert plain["rows_per_token"] == 1 and plain["speed"] == 1
        assert 1 <= guided["rows_per_token"] <= 2 * 6
        assert guided["speed"] == guided["tokens_per_second"] / plain["tokens_per_second"]
        for row in (plain, guided):
            assert 0 < row["outside_the_model"] < 1 and row["step_seconds"] > 0
    floor = report["floor"]
    read = floor["weight_bytes"] + floor["cache_bytes"]
    assert floor["seconds"] == read / floor["bytes_per_second"]
    assert floor["share"] == floor["seconds"] / report["alone"][0]["step_seconds"]
    shares = [one["share"] for one in report["operators"]]
    assert sum(shares) == pytest.approx(1) and shares == sorted(shares, reverse=True)
    assert all(one["calls"] == int(one["calls"]) for one in report["operators"])


@pytest.mark.parametrize(
    ("kinds", "names", "guided"),
    [
        (("value",), ["plain", "guided"], "args-greedy"),
        (("expert",), ["plain", "guided"], "experts"),
        (("medusa",), ["plain", "plain + s0"], "plain"),
        (("value", "medusa"), ["plain", "guided", "plain + s1", "guided + s1"], "args-greedy"),
        (("medusa", "expert"), ["plain", "guided", "plain + s0", "guided + s0"], "experts"),
    ],
)
def test_ways_follow_from_the_kinds_of_signals(
    kinds: tuple[str, ...], names: list[str], guided: str
) -> None:
    signals = [
        Signal(f"s{i}", kind, kind_of(Signal("s", kind)).activations[0], None, heads=2)
        for i, kind in enumerate(kinds)
    ]
    engine = FakeEngine(make_manifest(signals=signals), spread=1.0)
    ways = bench_command._ways(engine.manifest, ArgsGreedy(weight=3.0, top_k=4))
    assert [way.name for way in ways] == names
    assert ways[-1].method.name == guided and getattr(ways[-1].method, "weight", 3.0) == 3.0
    found = measure(engine, Plan(("one",), ways, 4, 1, (2,), 5.0), lambda name: None)
    assert [row["method"] for row in found["alone"]] == names
    assert all(row["tokens_per_second"] > 0 for row in (*found["alone"], *found["batches"]))


def test_rows_are_those_that_generation_feeds(engine_dir: Path) -> None:
    """Counted against another count: the candidates of the same text."""
    engine = load_engine(engine_dir, threads=1)
    method = ArgsGreedy(top_k=6, weight=4.0, prune=False)
    events: list[Any] = []
    generate(engine, PROMPT, method, max_tokens=9, on_event=events.append)
    found = run(TimedEngine(engine), [Request(PROMPT, method, 30)], tokens=8, limit=60.0)
    assert found.tokens == len(found.rounds) == 8
    assert found.rows == sum(len(event.candidates) for event in events[1:9]) == 48


def test_a_run_ends_with_the_engines_longest_sequence(tmp_path: Path) -> None:
    make_model(max_sequence_length=12).save(tmp_path / "engine")
    timed = TimedEngine(load_engine(tmp_path / "engine", threads=1))
    found = run(timed, [Request(PROMPT, Plain(), 30)] * 2, tokens=20, limit=60.0)
    assert len(found.rounds) == 12 - len(PROMPT) - 1 and found.tokens == 2 * len(found.rounds)


def test_no_token_ends_a_run() -> None:
    fake = FakeEngine()
    ends = dataclasses.replace(fake.manifest, eos_token_ids=tuple(range(fake.manifest.vocab_size)))
    fake.manifest = ends
    assert run(TimedEngine(fake), [Request("a", Plain(), 9)], tokens=5, limit=60.0).tokens == 5


def test_people_get_tables_and_a_plot(engine_dir: Path, tmp_path: Path, cli: Cli) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "bench.svg"
    result = cli("bench", engine_dir, "--prompt", PROMPT, "--quick", "--plot", plot)
    assert result.status == 0 and "tokens/s" in result.stdout and "GB/s" in result.stdout
    assert plot.read_bytes().startswith(b"<?xml")


def test_wrong_input_is_one_line(engine_dir: Path, cli: Cli) -> None:
    for options, said in (
        (("--prompt", "a" * 99), "the prompt has 99 tokens; the engine takes at most 79"),
        (("--prompt", PROMPT, "--top-k", 99), "from 1 to the vocabulary size 32"),
        (("--prompt", PROMPT, "--signal", "taste"), "the engine has no signal 'taste'"),
        (("--threads", 0), "threads must be an integer from 1"),
    ):
        result = cli("bench", engine_dir, *options)
        assert result.status == 2 and said in result.stderr and result.stdout == ""
        assert result.stderr.count("\n") == 1


def test_one_thread_reads_something() -> None:
    assert stream_bandwidth(1) > 1e6


def event(name: str, ts: int, dur: int, **more: Any) -> dict[str, Any]:
    kind = "Session" if name == "model_run" else "Node"
    return {"cat": kind, "name": name, "ts": ts, "dur": dur, "args": more}


def test_shares_are_of_the_last_runs() -> None:
    node = {"op_name": "MatMul"}
    profile = [
        event("model_run", 0, 100),
        event("x_kernel_time", 5, 90, **node),  # of a prompt
        event("x_kernel_time", 205, 30, **node),
        event("layer.0.otter.rows_kernel_time", 240, 10, **node),
        event("y_kernel_time", 255, 40, op_name="Softmax"),
        event("model_run", 200, 100),
        event("x_kernel_time", 305, 20, **node),
        event("model_run", 300, 100),
    ]
    first, second = shares_of(profile, 2)
    assert (first.name, first.calls, first.share) == ("MatMul", 1.5, 0.6)
    assert first.channel == pytest.approx(1 / 6)
    assert (second.name, second.calls, second.share, second.channel) == ("Softmax", 0.5, 0.4, 0)


@pytest.mark.parametrize(
    ("precision", "tied", "expected"),
    [
        ("fp32", True, 1000),
        ("fp32", False, 1000 - 4 * 60),
        ("fp16", True, 2000),
        ("fp16", False, 2000 - 4 * 60),
        ("int8", True, 1000 - 2 * 60),
        ("int4", False, 1000 - 2 * 60),
    ],
)
def test_weights_without_the_embedding_that_is_looked_up(
    precision: str, tied: bool, expected: int
) -> None:
    files = [("model.onnx", 100), ("model.onnx.data", 900), ("tokenizer.json", 5000)]
    known: EngineManifest = dataclasses.replace(
        make_manifest(),
        precision=precision,
        model_file="model.onnx",
        files=tuple(EngineFile(path, size, "") for path, size in files),
        base={"vocab_size": 10, "hidden_size": 6, "tie_word_embeddings": tied},
    )
    assert weight_bytes(known) == expected


def test_bytes_of_a_cache_are_those_of_its_memory(engine_dir: Path) -> None:
    engine = load_engine(engine_dir, threads=1)
    blocks = engine.new_cache(1).blocks  # type: ignore[attr-defined]
    slots = blocks[0].shape[3]
    # The memory may have a place for a second sequence.
    held = sum(np.asarray(block.array[:, :1]).nbytes for block in blocks)
    assert cache_bytes(engine.manifest, slots) == held and LAYERS == 2
