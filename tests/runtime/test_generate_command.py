"""L4: ``otter-export generate`` on a tiny engine, from files to terminal."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from otter_export import (
    ArgsGreedy,
    Penalties,
    Plain,
    Request,
    SegmentRejection,
    best_of,
    generate,
    load_engine,
    score,
    segment_rejection,
)
from otter_export.cli.generation_view import TextView, reward_color, summary
from otter_export.cli.main import _run
from otter_export.errors import MissingDependencyError, RequestError
from otter_export.evaluation.reward_plot import mean_by_position, plot_rewards
from otter_export.runtime.request import Candidate, Result, TokenEvent
from tests.runtime.tiny_model import make_model

FIELDS = [
    "prompt",
    "prompt_ids",
    "token_ids",
    "text",
    "rewards",
    "finish_reason",
    "forwards",
    "seconds",
]


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("command") / "engine"
    make_model(seed=3).save(path)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = _run(["generate", *map(str, arguments)], verbose=False)
    out, err = capsys.readouterr()
    return status, out, err


def test_json_is_one_object_per_prompt_and_nothing_else(
    engine_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--prompt", "a film", "--prompt", "€ is", "--max-tokens", 6, "--weight", 3)
    status, out, _ = run(capsys, engine_dir, *arguments, "--json")
    assert status == 0
    objects = [json.loads(line) for line in out.splitlines()]
    assert [list(o) for o in objects] == [FIELDS, FIELDS]
    engine = load_engine(engine_dir)
    expected = generate(engine, ["a film", "€ is"], ArgsGreedy(weight=3.0), max_tokens=6)
    for found, result in zip(objects, expected, strict=True):
        assert found["token_ids"] == list(result.token_ids)
        assert found["prompt_ids"] == list(result.prompt_ids)
        assert found["text"] == result.text
        assert len(found["rewards"]) == len(found["token_ids"])
        assert found["forwards"] == result.forwards
        assert found["seconds"] > 0


def test_a_file_of_prompts_joins_the_batch(
    engine_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "two", "method": "plain"}\n{"prompt": "three", "max_tokens": 2}\n')
    status, out, _ = run(capsys, engine_dir, "--prompt", "one", "--prompts", path, "--json")
    assert status == 0
    objects = [json.loads(line) for line in out.splitlines()]
    assert [o["prompt"] for o in objects] == ["one", "two", "three"]
    assert len(objects[2]["token_ids"]) == 2
    engine = load_engine(engine_dir)
    assert objects[1]["text"] == generate(engine, "two", Plain())[0].text


def test_prompts_may_follow_the_directory_and_come_from_standard_input(
    engine_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'{"prompt": "three"}\r\n')))
    arguments = ("one", "two", "--prompts", "-", "--max-tokens", 2, "--json")
    status, out, _ = run(capsys, engine_dir, *arguments)
    assert status == 0
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == ["one", "two", "three"]


def test_rewards_of_the_prompt_come_with_json(
    engine_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--prompt", "a film", "--max-tokens", 2, "--prompt-rewards")
    status, out, _ = run(capsys, engine_dir, *arguments, "--json")
    assert status == 0
    (scored,) = score(load_engine(engine_dir), ["a film"], signals=["reward"])
    assert json.loads(out)["prompt_rewards"] == list(scored.rewards)
    status, _, err = run(capsys, engine_dir, *arguments)
    assert (status, "--prompt-rewards is shown by --json alone" in err) == (2, True)


@pytest.mark.parametrize("live", ["--stream", "--no-stream"])
def test_text_is_followed_by_a_summary(
    engine_dir: Path, capsys: pytest.CaptureFixture[str], live: str
) -> None:
    arguments = ("--prompt", "a film", "--prompt", "the", "--max-tokens", 5)
    status, out, err = run(capsys, engine_dir, *arguments, live)
    assert (status, err) == (0, "")
    results = generate(load_engine(engine_dir), ["a film", "the"], max_tokens=5)
    lines = out.splitlines()
    assert lines[0] == "a film" + results[0].text
    assert lines[1].startswith("[mean reward ")
    assert lines[1].endswith(f"{results[0].forwards / 5:.2f} forwards per token]")
    assert lines[3] == "the" + results[1].text
    assert lines[6].startswith("[2 prompts, mean reward ")
    assert "\x1b" not in out


def test_weight_zero_equals_plain_on_the_command_line(
    engine_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for method in (["--method", "plain"], ["--weight", "0"]):
        _, out, _ = run(capsys, engine_dir, "--prompt", "a film", "--json", *method)
        texts.append({k: v for k, v in json.loads(out).items() if k != "seconds"})
    assert texts[0] == texts[1]


def test_a_gate_of_the_command_line_and_of_one_prompt(
    engine_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a film", "gate": 99}\n')
    arguments = ("--prompt", "a film", "--prompts", path, "--weight", 9, "--gate", 2.9, "--json")
    status, out, _ = run(capsys, engine_dir, *arguments)
    assert status == 0
    found = [json.loads(line)["token_ids"] for line in out.splitlines()]
    methods = (ArgsGreedy(weight=9.0, gate=2.9), Plain(), ArgsGreedy(weight=9.0))
    engine = load_engine(engine_dir)
    gated, plain, guided = ([*generate(engine, "a film", m)[0].token_ids] for m in methods)
    assert found == [gated, plain]
    assert guided not in found and gated != plain


def test_the_second_signal_can_be_asked_for(
    engine_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--prompt", "a film", "--signal", "future", "--weight", 9, "--json")
    status, out, _ = run(capsys, engine_dir, *arguments)
    assert status == 0
    engine = load_engine(engine_dir)
    result = generate(engine, "a film", ArgsGreedy(signal="future", weight=9.0))[0]
    assert json.loads(out)["token_ids"] == list(result.token_ids)


def test_sums_minimums_and_penalties_of_the_command_line_and_of_one_prompt(
    engine_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a film", "signal": "future", "banned_tokens": [7]}\n')
    arguments = ("--prompt", "a film", "--prompts", path, "--json", "--max-tokens", 9)
    sums = ("--weights", "reward=3", "--weights", "future=-2", "--minimum", "reward=0.1")
    more = ("--repetition-penalty", 1.5, "--ban", 3, "--ban", 4, "--min-tokens", 5)
    status, out, _ = run(capsys, engine_dir, *arguments, *sums, *more)
    assert status == 0
    several, one = [json.loads(line) for line in out.splitlines()]
    penalties = Penalties(repetition_penalty=1.5, banned_tokens=(3, 4), min_tokens=5)
    method = ArgsGreedy(weights={"reward": 3.0, "future": -2.0}, minimum={"reward": 0.1})
    engine = load_engine(engine_dir)
    [expected] = generate(engine, "a film", method, max_tokens=9, penalties=penalties)
    assert several["token_ids"] == list(expected.token_ids)
    assert several["signals"] == {n: list(v) for n, v in expected.signals.items()}
    # The line's signal sets the weights of the command aside; its bans are its own.
    method = ArgsGreedy(signal="future", minimum={"reward": 0.1})
    penalties = dataclasses.replace(penalties, banned_tokens=(7,))
    [expected] = generate(engine, "a film", method, max_tokens=9, penalties=penalties)
    assert one["token_ids"] == list(expected.token_ids)


def test_the_best_of_several(engine_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampled = ("--method", "plain", "--temperature", 1, "--seed", 5, "--max-tokens", 6)
    arguments = ("--prompt", "a film", "--prompt", "the", *sampled, "--best-of", 3)
    status, out, _ = run(capsys, engine_dir, *arguments, "--json")
    assert status == 0
    engine = load_engine(engine_dir)
    for line, prompt in zip(out.splitlines(), ("a film", "the"), strict=True):
        request = Request(prompt, Plain(temperature=1.0), max_tokens=6, seed=5)
        assert json.loads(line)["token_ids"] == list(best_of(engine, request, 3)[0].token_ids)
    status, out, _ = run(capsys, engine_dir, *arguments)
    assert status == 0 and out.count("\n[mean reward ") == 2 and out.startswith("a film")


def test_segments_that_are_drawn_anew(engine_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sampled = ("--method", "plain", "--temperature", 1, "--seed", 5, "--max-tokens", 20)
    options = ("threshold=0.6", "entropy=2.5", "tries=5", "beta=0")
    segments = [argument for option in options for argument in ("--segments", option)]
    arguments = ("--prompt", "a film", "--prompt", "the", *sampled, *segments)
    status, out, _ = run(capsys, engine_dir, *arguments, "--json")
    assert status == 0
    engine = load_engine(engine_dir)
    rejection = SegmentRejection(threshold=0.6, entropy=2.5, tries=5, beta=0)
    for line, prompt in zip(out.splitlines(), ("a film", "the"), strict=True):
        request = Request(prompt, Plain(temperature=1.0), max_tokens=20, seed=5)
        expected = segment_rejection(engine, request, rejection)
        found = json.loads(line)
        assert list(found) == [*FIELDS, "segments"]
        assert found["token_ids"] == list(expected.token_ids)
        assert found["segments"] == [dataclasses.asdict(s) for s in expected.segments]
    status, out, _ = run(capsys, engine_dir, *arguments)
    assert status == 0 and out.count("\n[mean reward ") == 2 and out.startswith("a film")


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_plot_shows_guided_against_unguided(
    engine_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / f"rewards.{suffix}"
    arguments = ("--prompt", "a film", "--weight", 5, "--json", "--plot", path)
    status, out, err = run(capsys, engine_dir, *arguments)
    assert status == 0
    assert len(out.splitlines()) == 1
    assert f"plot: {path}" in err
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG" if suffix == "png" else b"<?xml")
    if suffix == "svg":
        assert b"guided (mean" in content or b"<!-- guided (mean" in content
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


PLAIN = ("--method", "plain", "--temperature", "1")
SEGMENTS = ("--segments", "threshold=0.5")
WRONG = [
    ([], "there is nothing to continue; give --prompt TEXT or --prompts FILE"),
    (["--prompt", ""], "the prompt is empty"),
    (["--prompt", "a", "--top-k", "0"], "top_k must be an integer from 1"),
    (["--prompt", "a", "--top-k", "99"], "top_k must be an integer from 1 to the vocabulary size"),
    (["--prompt", "a", "--top-k", "x"], "'x' is not a valid integer"),
    (["--prompt", "a", "--weight", "nan"], "weight must be a finite number"),
    (["--prompt", "a", "--weight", "inf"], "weight must be a finite number"),
    (["a", "--temperature", "1"], "has no option temperature; its options: "),
    (["a", "--temperature", "1"], "methods that have it: args-stochastic, experts, plain"),
    (["a", "--method", "\x1b[31m\u202e"], r"unknown method '\x1b[31m\u202e'"),
    (["a", "--top-k", "1" * 5000], "is not a valid integer"),
    (["a", "--\x1b[31m"], r"\x1b[31m"),
    (["--prompt", "a", "--method", "plain", "--temperature", "-1"], "temperature must be a finite"),
    (["--prompt", "a", "--method", "plain", "--weight", "1"], "'plain' has no option weight"),
    (["--prompt", "a", "--method", "args-stochastic", "--top-p", "2"], "top_p must be a finite"),
    (["--prompt", "a", "--method", "argsgreedy"], "did you mean 'args-greedy'?"),
    (["--prompt", "a", "--max-tokens", "0"], "max_tokens must be an integer of at least 1"),
    (["--prompt", "a", "--seed", "-1"], "seed must be an integer from 0"),
    (["--prompt", "a", "--stop", ""], "stop must be texts of at least one character"),
    (["--prompt", "a", "--signal", "joy"], "no signal 'joy'; its signals: reward, future"),
    (["--prompt", "a", "--threads", "0"], "threads must be an integer from 1 to 1024"),
    (["--prompt", "a", "--batch-size", "0"], "batch_size must be an integer of at least 1"),
    (["--prompt", "a", "--plot", "x.jpeg"], "the name must end in .png, .svg, .pdf"),
    (["--prompt", "a", "--plot", "none/x.png"], "none is not a directory"),
    (["--prompt", "a", "--prompts", "none.jsonl"], "cannot read the prompts in none.jsonl"),
    (["a", *PLAIN, "--segments", "beta=1"], "segments: threshold is missing; give threshold="),
    (["a", *PLAIN, "--segments", "threshold"], "segments must be NAME=NUMBER, such as reward=1.5"),
    (["a", *PLAIN, *SEGMENTS, "--segments", "length=4"], "segments: no option length; give"),
    (["a", *PLAIN, *SEGMENTS, "--segments", "tries=2.5"], "tries must be an integer of at least 1"),
    (["a", *SEGMENTS], "method args-greedy draws nothing"),
    (["a", *PLAIN, *SEGMENTS, "--drafts", "lookup"], "leave out drafts='lookup'"),
    (["a", *PLAIN, *SEGMENTS, "--best-of", "2"], "--segments does not go with --best-of"),
    (["a", *PLAIN, *SEGMENTS, "--plot", "x.png"], "--segments does not go with --plot"),
    (["a", *PLAIN, *SEGMENTS, "--signal", "future"], "method plain reads here: future (q_value)"),
    (["--prompt", "a" * 80], "the prompt has 80 tokens; the engine takes at most 79"),
    (["--prompt", "a\udcff"], "the prompt is not valid Unicode"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_misuse_is_one_line_and_status_two(
    engine_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    status, out, err = run(capsys, engine_dir, *arguments)
    assert status == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    assert err.splitlines()[-1].lower().startswith("error: ")
    assert all(line.isprintable() and len(line) < 4100 for line in err.splitlines())


def test_a_directory_that_is_no_engine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, tmp_path, "--prompt", "a")
    assert status == 2
    assert "has no engine.json: it is not an engine. Build one with: otter-export build" in err


def test_an_engine_without_its_tokenizer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model().save(tmp_path / "engine")
    (tmp_path / "engine" / "tokenizer.json").write_bytes(
        b" " * (tmp_path / "engine" / "tokenizer.json").stat().st_size
    )
    status, _, err = run(capsys, tmp_path / "engine", "--prompt", "a")
    assert status == 2
    assert "tokenizer.json is not a readable tokenizer" in err


def test_a_reader_that_goes_away_is_no_error(engine_dir: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    arguments = ["generate", str(engine_dir), "--prompt", "a film", "--json", "--threads", "1"]
    script = f"from otter_export.cli.main import main; main({arguments!r})"
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


def _result(rewards: tuple[float, ...], seconds: float = 2.0, request: int = 0) -> Result:
    ids = tuple(range(len(rewards)))
    return Result(request, "p", (1,), ids, "t", rewards, "eos", len(ids), seconds)


def test_the_summary_counts() -> None:
    one = summary([_result((0.5, -0.25, 0.5, 0.25))])
    assert one == "[mean reward +0.250, 4 tokens (eos), 2.0 tokens/s, 1.00 forwards per token]"
    two = summary([_result((0.5,)), _result((-1.0, -1.0, -1.0))], seconds=2.0)
    assert two.startswith("[2 prompts, mean reward -0.625, 4 tokens, 2.0 tokens/s")


def test_texts_are_shown_in_order_however_they_come(capsys: pytest.CaptureFixture[str]) -> None:
    def token(request: int, text: str) -> TokenEvent:
        return TokenEvent(request, 1, text, 0.0, (Candidate(1, 0.0, 0.0, 0.0),), None)

    view = TextView(["A:", "B:"], (-1.0, 1.0), live=True)
    view.token(token(1, "b1"))
    view.token(token(0, "a1"))
    assert capsys.readouterr().out == "A:a1"
    view.token(token(1, "b2"))
    view.finished(_result((0.0,), request=1))
    view.token(token(0, "a2"))
    assert capsys.readouterr().out == "a2"
    view.finished(_result((0.0,)))
    out = capsys.readouterr().out.splitlines()
    assert out[1].startswith("[mean reward")
    assert out[3] == "B:b1b2"
    assert out[4].startswith("[mean reward")


def test_tokens_are_coloured_by_reward_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    view = TextView(["A:"], (-1.0, 1.0), live=True)
    view.token(TokenEvent(0, 1, "good", 1.0, (), None))
    assert capsys.readouterr().out.endswith("\x1b[38;2;26;152;80mgood\x1b[0m")
    monkeypatch.setenv("NO_COLOR", "1")
    TextView(["A:"], (-1.0, 1.0), live=True).token(TokenEvent(0, 1, "good", 1.0, (), None))
    assert capsys.readouterr().out == "A:good"


def test_colours_run_from_bad_to_good() -> None:
    assert reward_color(-5.0, (-1.0, 1.0)) == (215, 48, 39)
    assert reward_color(0.0, (-1.0, 1.0)) == (200, 200, 200)
    assert reward_color(1.0, (0.0, 1.0)) == (26, 152, 80)


def test_means_are_over_the_sequences_that_reach_a_position() -> None:
    assert mean_by_position([[1.0, 2.0, 3.0], [3.0]]) == [2.0, 2.0, 3.0]
    assert mean_by_position([]) == []


def test_plots_need_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"otter-export\[plot\]"):
        plot_rewards(tmp_path / "x.png", {"guided": [[1.0]]})
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_plot_leaves_nothing(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises((TypeError, ValueError)):
        plot_rewards(tmp_path / "x.png", {"guided": [["no number"]]})  # type: ignore[list-item]
    with pytest.raises(RequestError):
        plot_rewards(tmp_path / "x.txt", {"guided": [[1.0]]})
    assert list(tmp_path.iterdir()) == []
    plot_rewards(tmp_path / "x.png", {"guided": [list(np.linspace(-1, 1, 9))], "other": [[]]})
    assert (tmp_path / "x.png").stat().st_size > 5000
