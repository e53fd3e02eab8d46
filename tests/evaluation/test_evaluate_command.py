"""L4: ``otter-export evaluate`` on tiny engines: its numbers, its report, its refusals."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from otter_export import ArgsGreedy, Plain, Request, evaluate, generate, load_engine
from otter_export.chat_template import ChatTemplate
from otter_export.errors import MissingDependencyError, OtterError
from otter_export.evaluation import evaluate as module
from otter_export.evaluation import evaluation_report
from otter_export.evaluation.judge_command import Pair
from otter_export.evaluation.reward_curves import curves
from otter_export.evaluation.sentence_embeddings import SentenceEmbedder
from otter_export.runtime.chat import Chat
from tests.command_line import Cli
from tests.evaluation.conftest import Build
from tests.runtime.fake_engine import ByteTokenizer, FakeEngine, make_manifest
from tests.runtime.tiny_model import TinyModel, make_model

PROMPTS = ["a film", "the end.", "b", "what a"]
#: Prefers more letters a.
JUDGE = """
import json, sys
for line in sys.stdin:
    a, b = (json.loads(line)[name].count("a") for name in "ab")
    print("a" if a > b else "b" if b > a else "tie")
"""


@pytest.fixture(autouse=True)
def without_embeddings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured does not depend on what is installed; one test has embeddings."""

    def installed() -> SentenceEmbedder:
        raise MissingDependencyError("minilm", "evaluate", "coherence")

    monkeypatch.setattr(SentenceEmbedder, "installed", installed)


@pytest.fixture(scope="module")
def model() -> TinyModel:
    return make_model(seed=3)


@pytest.fixture(scope="module")
def engine_dir(model: TinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluate") / "engine"
    model.save(path)
    return path


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    return path


@pytest.fixture
def judge(tmp_path: Path) -> str:
    script = tmp_path / "judge.py"
    script.write_text(JUDGE)
    return shlex.join([sys.executable, str(script)])


def run(cli: Cli, directory: Path, prompts: Path, *options: object) -> dict[str, Any]:
    fixed = ("--prompts", prompts, "--max-tokens", 8, "--json", "--threads", 1)
    result = cli("evaluate", directory, *fixed, *options)
    assert result.status == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_the_numbers_are_those_of_the_texts(
    cli: Cli, engine_dir: Path, prompts: Path, judge: str, model: TinyModel
) -> None:
    report = run(cli, engine_dir, prompts, "--weights", "0,6", "--judge", judge)
    assert [arm["way"] for arm in report["arms"]] == [
        "plain",
        "args-greedy, k 8, weight 0",
        "args-greedy, k 8, weight 6",
    ]
    engine = load_engine(engine_dir, threads=1)
    methods = (Plain(), ArgsGreedy(weight=0.0), ArgsGreedy(weight=6.0))
    plain = generate(engine, PROMPTS, Plain(), max_tokens=8)
    for arm, method in zip(report["arms"], methods, strict=True):
        written = generate(engine, PROMPTS, method, max_tokens=8)
        assert [text["text"] for text in arm["texts"]] == [r.text for r in written]
        means = {name: interval["mean"] for name, interval in arm["metrics"].items()}
        assert means["reward_end"] == pytest.approx(np.mean([r.rewards[-1] for r in written]))
        assert means["reward_mean"] == pytest.approx(np.mean([np.mean(r.rewards) for r in written]))
        distinct = [len(set(r.token_ids)) / len(r.token_ids) for r in written]
        assert means["distinct_1"] == pytest.approx(np.mean(distinct))
        assert arm["tokens"] == sum(len(r.token_ids) for r in written)
        assert arm["forwards_per_token"] == sum(r.forwards for r in written) / arm["tokens"]
        # The reference recomputes whole sequences in float64, without an engine.
        losses = []
        for r in written:
            logits = model.reference([*r.prompt_ids, *r.token_ids])[0][len(r.prompt_ids) - 1 : -1]
            logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
            losses += [-logs[i, token] for i, token in enumerate(r.token_ids)]
        assert means["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
        for interval in arm["metrics"].values():
            assert interval["low"] <= interval["mean"] <= interval["high"]
        if method == Plain():
            assert "win_rate" not in arm and "over_first" not in arm
            continue
        mine, theirs = ([r.text.count("a") for r in rs] for rs in (written, plain))
        wins = [0.5 if a == b else float(a > b) for a, b in zip(mine, theirs, strict=True)]
        assert [text["win"] for text in arm["texts"]] == wins
        assert arm["win_rate"]["mean"] == np.mean(wins)
        change = means["reward_mean"] - report["arms"][0]["metrics"]["reward_mean"]["mean"]
        assert arm["over_first"]["reward_mean"]["mean"] == pytest.approx(change)
    assert report["arms"][1]["over_first"]["reward_end"] == {"mean": 0, "low": 0, "high": 0}
    assert report["arms"][1]["judge_agreement"] is None  # the same texts
    assert report["arms"][2]["over_first"]["reward_mean"]["mean"] > 0
    assert report["skipped"].keys() == {"coherence"}
    sizes = sum(f.stat().st_size for f in engine_dir.iterdir() if f.name != "engine.json")
    assert {arm["engine_bytes"] for arm in report["arms"]} == {sizes}


def test_the_report_is_a_directory(
    cli: Cli, engine_dir: Path, prompts: Path, judge: str, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "report"
    options = ("--weights", "-3,0,3", "--top-k", "2,4", "--judge", judge, "--out", out)
    report = run(cli, engine_dir, prompts, *options)
    assert {path.name for path in out.iterdir()} == {"report.md", "curves.png", "evaluation.json"}
    assert json.loads((out / "evaluation.json").read_text()) == report
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.md").read_text()
    assert "![Reward against perplexity and diversity](curves.png)" in page
    for arm in report["arms"]:
        mean = arm["metrics"]["perplexity"]["mean"]
        first = next(line for line in page.splitlines() if f"| {arm['way']} |" in line)
        assert f"| {mean:.3f} |" in first
    # Each way has a row in three tables, and the first way in two.
    assert page.count("| engine | way |") == 3 and page.count("| engine | plain |") == 2
    assert page.count("| engine | args-greedy, k 4, weight 0 |") == 3
    again = cli("evaluate", engine_dir, "--prompts", prompts, "--out", out)
    assert again.status == 2 and "exists; choose another name" in again.stderr
    run(cli, engine_dir, prompts, "--method", "plain", "--out", out, "--force")
    assert len(json.loads((out / "evaluation.json").read_text())["arms"]) == 1


def test_a_curve_is_the_arms_that_differ_by_their_weight(
    cli: Cli, engine_dir: Path, prompts: Path
) -> None:
    report = run(cli, engine_dir, prompts, "--weights", "3,-3,0", "--top-k", "2,4")
    found = curves(report["arms"])
    assert list(found) == [
        f"engine: {n}" for n in ("plain", "args-greedy, k 2", "args-greedy, k 4")
    ]
    for curve in list(found.values())[1:]:
        assert [arm["method"]["weight"] for arm in curve] == [-3, 0, 3]


def test_without_matplotlib_the_page_says_so(
    cli: Cli, engine_dir: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plot(path: Path, arms: object) -> None:
        raise MissingDependencyError("matplotlib", "plot", "drawing a plot")

    monkeypatch.setattr(evaluation_report, "plot_curves", plot)
    run(cli, engine_dir, prompts, "--out", tmp_path / "report")
    assert {p.name for p in (tmp_path / "report").iterdir()} == {"report.md", "evaluation.json"}
    page = (tmp_path / "report" / "report.md").read_text()
    assert "There is no picture: drawing a plot needs the package 'matplotlib'" in page


def test_coherence_is_the_cosine_of_prompt_and_text(
    engine_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Embedder:
        def cosines(self, one: list[str], other: list[str]) -> np.ndarray:
            assert one == PROMPTS
            return np.array([len(text) for text in other], np.float64)

    monkeypatch.setattr(SentenceEmbedder, "installed", Embedder)
    engine = load_engine(engine_dir, threads=1)
    found = evaluate([("tiny", engine)], PROMPTS, {"plain": Plain()}, max_tokens=4)
    lengths = [len(r.text) for r in generate(engine, PROMPTS, Plain(), max_tokens=4)]
    assert found.arms[0].intervals()["coherence"].mean == np.mean(lengths)
    assert not found.skipped


def test_several_engines_have_their_names_and_each_is_asked_for_in_turn(
    cli: Cli, engine_dir: Path, engine: Build, prompts: Path
) -> None:
    other = engine("fp32")
    checkpoint = other.parent / "llama"
    options = ("--method", "plain", "--prompts", prompts, "--max-tokens", 3, "--json")
    result = cli("evaluate", engine_dir, other, checkpoint, *options)
    assert result.status == 0, result.stderr
    arms = json.loads(result.stdout)["arms"]
    assert [arm["engine"] for arm in arms] == ["engine", "llama-fp32", "llama"]
    # A checkpoint is no engine, and has no size of one; it writes the same texts as its engine.
    assert [arm["engine_bytes"] is None for arm in arms] == [False, False, True]
    assert [t["text"] for t in arms[1]["texts"]] == [t["text"] for t in arms[2]["texts"]]
    one, two = (arm["metrics"]["perplexity"]["mean"] for arm in arms[1:])
    assert one == pytest.approx(two, rel=1e-4)


def test_each_prompt_has_a_seed_of_its_own(engine_dir: Path) -> None:
    engine = load_engine(engine_dir, threads=1)
    sampled = {"sampled": Plain(temperature=2.0)}
    requests = [Request("a", max_tokens=8) for _ in range(3)]

    def texts(*given: Request, seed: int) -> list[str]:
        found = evaluate([("tiny", engine)], given, sampled, seed=seed)
        return [result.text for result in found.arms[0].written.results]

    first = texts(*requests, seed=5)
    assert len(set(first)) > 1
    assert texts(*requests, seed=5) == first
    assert texts(*requests, seed=6)[:2] == first[1:]
    own = dataclasses.replace(requests[0], seed=6)
    assert texts(own, seed=0) == first[1:2]


def test_a_chat_is_judged_as_its_template_writes_it() -> None:
    tokenizer = ByteTokenizer()
    tokenizer.chat_template = ChatTemplate("{{ messages[0].content }}?", {})  # type: ignore[assignment]
    asked: list[Pair] = []

    def ask(pairs: list[Pair]) -> list[float]:
        asked.extend(pairs)
        return [1.0] * len(pairs)

    ways = {"plain": Plain(), "up": ArgsGreedy(weight=60.0)}
    engines = [("fake", FakeEngine(tokenizer=tokenizer))]
    found = evaluate(engines, [Chat.of("why")], ways, max_tokens=9, judge=ask)
    assert {pair.prompt for pair in asked} == {"why?"}
    assert found.to_json()["arms"][0]["texts"][0]["prompt"] == "why?"


def test_progress_is_told_for_each_text(engine_dir: Path) -> None:
    told: list[str] = []
    engine = load_engine(engine_dir, threads=1)
    ways = {"one": Plain(), "two": ArgsGreedy(weight=2.0)}
    evaluate([("tiny", engine)], PROMPTS, ways, max_tokens=3, done=told.append)
    assert told == ["tiny: one"] * 4 + ["tiny: two"] * 4


def test_an_engine_without_rewards_has_the_other_metrics(tmp_path: Path) -> None:
    loaded = FakeEngine(make_manifest(signals=()))
    found = evaluate([("fake", loaded)], [Request([3, 1, 4], max_tokens=5)], {"plain": Plain()})
    data = found.to_json()
    assert data["skipped"]["reward_end"] == "an engine has no signal that scores"
    assert {"perplexity", "distinct_2"} <= data["arms"][0]["metrics"].keys()
    assert "reward_end" not in data["arms"][0]["metrics"]
    evaluation_report.write_report(tmp_path / "report", {"settings": {}, **data})
    assert "no engine has a signal that scores" in (tmp_path / "report" / "report.md").read_text()


def test_a_method_that_does_not_fit_is_refused_before_anything_is_written() -> None:
    engine = FakeEngine(make_manifest(signals=()))
    ways = {"plain": Plain(), "guided": ArgsGreedy(weight=1.0)}
    told: list[str] = []
    with pytest.raises(OtterError, match="needs a signal of kind value or q_value"):
        evaluate([("fake", engine)], [Request([3, 1])], ways, done=told.append)
    assert not told


def test_a_judge_that_is_a_function_is_asked_about_each_way(engine_dir: Path) -> None:
    asked: list[list[Pair]] = []

    def ask(pairs: list[Pair]) -> list[float]:
        asked.append(pairs)
        return [1.0] * len(pairs)

    ways = {"plain": Plain(), "up": ArgsGreedy(weight=6.0), "down": ArgsGreedy(weight=-6.0)}
    engine = load_engine(engine_dir, threads=1)
    found = evaluate([("tiny", engine)], PROMPTS, ways, max_tokens=8, judge=ask)
    assert len(asked) == 2 and all(len(pairs) <= 2 * len(PROMPTS) for pairs in asked)
    for arm in found.arms[1:]:
        assert arm.wins is not None and (arm.wins.share == 0.5).all()


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--method", "best"), "unknown method 'best'"),
        (("--weights", "1,x"), "--weights must be numbers with commas between them, got '1,x'"),
        (("--top-k", "4.5"), "--top-k must be integers with commas between them, got '4.5'"),
        (("--top-k", "0"), "top_k must be an integer from 1 to the vocabulary size, got 0"),
        (("--weights", "nan"), "weight must be a finite number, got nan"),
        (("--method", "plain", "--gate", "1"), "none of the methods plain has an option gate"),
        (("--max-tokens", "0"), "max_tokens must be an integer of at least 1, got 0"),
        (("--seed", "-1"), "seed must be an integer of at least 0, got -1"),
        (("--judge", "no-such-judge"), "the judge 'no-such-judge' is no command"),
        (("--signal", "joy"), "joy"),
        (("--out", "{prompts}"), "exists; choose another name"),
        (("--out", "{prompts}", "--force"), "is not a directory with evaluation.json"),
    ],
)
def test_wrong_options_are_one_line(
    cli: Cli, engine_dir: Path, prompts: Path, options: tuple[str, ...], error: str
) -> None:
    given = [option.format(prompts=prompts) for option in options]
    result = cli("evaluate", engine_dir, "--prompts", prompts, *given)
    assert result.status == 2 and result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    assert re.search(error, lines[0]), lines[0]


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ("import sys; sys.exit('no key')", "failed with status 1: no key"),
        ("print('a')", "wrote 1 lines for"),
        ("import time; time.sleep(600)", "was not done after 0.5 seconds"),
    ],
)
def test_a_judge_that_fails_is_one_line_and_leaves_nothing(
    cli: Cli, engine_dir: Path, prompts: Path, tmp_path: Path, source: str, error: str
) -> None:
    script = tmp_path / "bad.py"
    script.write_text(source)
    out = tmp_path / "report"
    options = ("--weights", "6", "--judge", shlex.join([sys.executable, str(script)]))
    options += ("--judge-seconds", "0.5" if "sleep" in source else "60", "--out", str(out))
    result = cli("evaluate", engine_dir, "--prompts", prompts, *options)
    assert result.status == 2 and error in result.stderr
    assert len(result.stderr.splitlines()) == 1 and not out.exists()


def test_prompts_have_no_method_of_their_own(cli: Cli, engine_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n{"prompt": "b", "weight": 2}\n')
    result = cli("evaluate", engine_dir, "--prompts", path)
    assert result.status == 2
    assert "prompt 2 of" in result.stderr and "has a method or options of its own" in result.stderr
    path.write_text('{"prompt": "a", "rewards_from": 0, "max_tokens": 0}\n')
    result = cli("evaluate", engine_dir, "--prompts", path)
    assert result.status == 2 and "evaluate does not report rewards of the prompt" in result.stderr
    path.write_text("\n")
    result = cli("evaluate", engine_dir, "--prompts", path)
    assert result.status == 2 and "has no prompts" in result.stderr


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"prompts": []}, "there are no prompts"),
        ({"prompts": "a film"}, "there are no prompts"),
        ({"ways": {}}, "there are no ways"),
        ({"engines": []}, "there are no engines"),
    ],
)
def test_nothing_to_do_is_an_error(changes: dict[str, Any], error: str) -> None:
    given: dict[str, Any] = {"engines": [], "prompts": ["a"], "ways": {"plain": Plain()}}
    with pytest.raises(OtterError, match=error):
        module.evaluate(**{**given, **changes})
