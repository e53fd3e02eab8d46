"""L4: ``otter-export score`` on a tiny engine, from files to terminal."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from otter_export import generate, load_engine, score
from otter_export.cli.main import _run
from tests.runtime.tiny_model import make_model


@pytest.fixture(scope="module")
def engine_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("score") / "engine"
    make_model(seed=3).save(path)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = _run(["score", *map(str, arguments)], verbose=False)
    out, err = capsys.readouterr()
    return status, out, err


def test_lines_come_back_in_order_with_their_scores(
    engine_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {"id": 7, "prompt": "the film ", "response": "was long, and long."},
        {"text": "a"},
        {"prompt": [1, 2], "response": [3, 4, 5]},
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    status, out, _ = run(capsys, engine_dir, "--data", path, "--separator", ",", "--json")
    assert status == 0
    found = [json.loads(line) for line in out.splitlines()]
    pairs = [("the film ", "was long, and long."), "a", ([1, 2], [3, 4, 5])]
    expected = score(load_engine(engine_dir), pairs, separator=",")
    for line, answer, scored in zip(lines, found, expected, strict=True):
        assert answer == json.loads(json.dumps(line | scored.to_json()))
        assert answer["reward"] == answer["rewards"][-1] == answer["signals"]["reward"][-1]
    assert [step["text"] for step in found[0]["steps"]] == ["was long,", " and long."]
    assert found[0]["id"] == 7


def test_texts_are_shown_with_their_rewards(
    engine_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("one. two", "three", "--prompt", "the ", "--signal", "reward", "--separator", ".")
    status, out, err = run(capsys, engine_dir, *arguments)
    assert (status, err) == (0, "")
    one, three = score(
        load_engine(engine_dir), [("the ", "one. two"), ("the ", "three")], signals=["reward"]
    )
    assert out.splitlines() == [
        f"{one.reward:+7.3f}  one. two",
        f"  {one.rewards[3]:+7.3f}  one.",
        f"  {one.reward:+7.3f}  two",
        f"{three.reward:+7.3f}  three",
        f"  {three.reward:+7.3f}  three",
    ]


def test_generated_lines_can_be_scored(
    engine_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (result,) = generate(load_engine(engine_dir), "a film", max_tokens=8)
    line = json.dumps({"prompt": list(result.prompt_ids), "response": list(result.token_ids)})
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(line.encode())))
    status, out, _ = run(capsys, engine_dir, "--data", "-", "--signal", "reward", "--json")
    assert status == 0
    # A whole text at once and token by token: float32 sums in another order.
    assert json.loads(out)["rewards"] == pytest.approx(result.rewards, abs=1e-6)
    assert "signals" not in json.loads(out)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("nothing", "line 1: not JSON"),
        ("[1]", 'line 1: expected an object with "response"'),
        ('{"prompt": "a"}', 'line 1: expected an object with "response" (or "text"), got'),
        ('{"text": "a", "response": "b"}', "line 1: expected an object with"),
        ('{"response": 5}', "line 1: response must be text or token ids, got 5"),
        ('{"response": [1.5]}', "line 1: response must be text or token ids"),
        ('{"response": "a", "prompt": null}', "line 1: prompt must be text or token ids"),
        ('{"response": "a", "prompt": "b", "messages": []}', "there are both prompt and messages"),
        ('{"response": "a", "messages": []}', "line 1: messages must be a list of at least one"),
        ('{"response": ""}', "text 1 of 1: the response has no tokens"),
    ],
)
def test_a_wrong_line_is_named(
    engine_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    line: str,
    message: str,
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(line + "\n")
    status, out, err = run(capsys, engine_dir, "--data", path)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_nothing_to_score_is_said(engine_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, engine_dir)
    assert status == 2
    assert "there is nothing to score; give a RESPONSE or --data FILE.jsonl" in err
