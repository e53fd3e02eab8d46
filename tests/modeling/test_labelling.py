"""L5: ``otter-export label`` and ``train --teacher``: real classifiers with tiny random weights."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from otter_export.files import hold
from otter_export.modeling import labelling
from otter_export.modeling.labelling import Places, Scale
from otter_export.modeling.teacher import Passage, Teacher
from tests import tiny
from tests.command_line import Cli

#: The same sums beside padding: float32.
EQUAL = 1e-5
#: Words of the tiny tokenizer, a token each.
TEXTS = ["w3 w9 w20 w5", "w7", "w9 w11 w12 w14 w5 w6 w8 w90", "w4 w4 w4", "w5 w6"]


def teacher(
    directory: Path, kind: str = "SequenceClassification", labels: int = 1, **config: Any
) -> Any:
    """A tiny Llama with a head, saved by its own class, and its tokenizer."""
    base = tiny.write_base(directory.with_name(f"{directory.name}-base"))
    torch.manual_seed(0)
    auto = getattr(transformers, f"AutoModelFor{kind}")
    names = {i: name for i, name in enumerate(("bad", "good")[:labels])}
    model = auto.from_pretrained(base, num_labels=labels, id2label=names).eval()
    model.score.weight.data.normal_(std=0.3)
    for name, value in config.items():
        setattr(model.config, name, value)
    model.save_pretrained(directory)
    for file in base.glob("tokenizer*"):
        (directory / file.name).write_bytes(file.read_bytes())
    return model


def own_score(model: Any, directory: Path, text: str) -> torch.Tensor:
    """The class's logits of one text, alone and unpadded."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model.config.pad_token_id = None
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokenizer(text)["input_ids"]])).logits[0]


def write_lines(path: Path, lines: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_batch_scores_as_each_text_alone(tmp_path: Path) -> None:
    model = teacher(tmp_path / "rm")
    passages = [Passage("w50 ", text, (len(text),)) for text in TEXTS]
    found = Teacher(tmp_path / "rm").score(passages)
    expected = [own_score(model, tmp_path / "rm", f"w50 {text}") for text in TEXTS]
    assert [one[0] for one in found] == pytest.approx([float(e) for e in expected], abs=EQUAL)


def test_every_prefix_of_a_sequence_classifier_is_a_text_of_its_own(tmp_path: Path) -> None:
    model = teacher(tmp_path / "rm")
    ends = Places(every=3).ends(TEXTS[2])
    assert [TEXTS[2][:end] for end in ends] == [
        "w9 w11 w12",
        "w9 w11 w12 w14 w5 w6",
        "w9 w11 w12 w14 w5 w6 w8 w90",
    ]
    (found,) = Teacher(tmp_path / "rm").score([Passage("", TEXTS[2], ends)])
    expected = [float(own_score(model, tmp_path / "rm", TEXTS[2][:end])) for end in ends]
    assert found == pytest.approx(expected, abs=EQUAL)


def test_a_token_classifier_scores_the_token_that_ends_a_step(tmp_path: Path) -> None:
    model = teacher(tmp_path / "prm", "TokenClassification", 2)
    text = "w10 w99 w11 w12 w99 w13"
    ends = Places(separator="w99").ends(text)
    passages = [Passage("w50 ", text, ends), Passage("", "w3", (2,))]
    found, short = Teacher(tmp_path / "prm", label="good").score(passages)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "prm")
    logits = own_score(model, tmp_path / "prm", f"w50 {text}").softmax(-1)[:, 1]
    # A causal model's score of a step is that of the text up to there.
    places = [len(tokenizer(f"w50 {text[:end]}")["input_ids"]) - 1 for end in ends]
    assert places == [2, 5, 6]
    assert found == pytest.approx([float(logits[place]) for place in places], abs=EQUAL)
    assert len(short) == 1


@settings(max_examples=40)
@given(st.text("ab ;\n", min_size=1).filter(str.strip), st.integers(1, 4))
def test_places_cover_the_text(text: str, every: int) -> None:
    for places in (Places(), Places(every=every), Places(separator=";")):
        ends = places.ends(text)
        assert list(ends) == sorted(set(ends))
        assert 0 < ends[0] <= ends[-1] <= len(text)
        assert not text[ends[-1] :].strip()
    ends = (0, *Places(every=every).ends(text))
    words = [len(text[a:b].split()) for a, b in itertools.pairwise(ends)]
    assert all(count == every for count in words[:-1])


def test_labels_are_what_training_reads(tmp_path: Path, cli: Cli) -> None:
    model = teacher(tmp_path / "rm")
    lines = [{"id": i, "prompt": "w50 ", "response": text} for i, text in enumerate(TEXTS)]
    data, out = write_lines(tmp_path / "d.jsonl", lines), tmp_path / "out.jsonl"
    arguments = ("label", "--teacher", tmp_path / "rm", "--data", data, "--out", out)
    result = cli(*arguments, "--batch-size", 2)
    assert result.status == 0, result.stderr
    found = read_lines(out)
    raw = [float(own_score(model, tmp_path / "rm", f"w50 {text}")) for text in TEXTS]
    assert [line["teacher_score"] for line in found] == pytest.approx(raw, abs=EQUAL)
    constants = json.loads((tmp_path / "out.jsonl.scale.json").read_text())
    assert constants["mean"] == pytest.approx(np.mean(raw), abs=EQUAL)
    assert constants["deviation"] == pytest.approx(np.std(raw), abs=EQUAL)
    expected = np.clip((np.array(raw) - np.mean(raw)) / (3 * np.std(raw)), -1, 1)
    assert [line["score"] for line in found] == pytest.approx(expected.tolist(), abs=1e-4)
    assert [(line["id"], line["prompt"], line["response"]) for line in found] == [
        (i, "w50 ", text) for i, text in enumerate(TEXTS)
    ]
    assert sorted(p.name for p in tmp_path.glob("out*")) == ["out.jsonl", "out.jsonl.scale.json"]
    checkpoint = tiny.write_checkpoint(tmp_path / "ckpt", base=tmp_path / "rm-base")
    result = cli("train", checkpoint, "--data", out, "--objective", "regression", "--max-steps", 1)
    assert result.status == 0, result.stderr


def test_each_piece_follows_what_came_before_it(tmp_path: Path, cli: Cli) -> None:
    teacher(tmp_path / "prm", "TokenClassification", 2)
    lines = [{"prompt": "w50", "text": " w3 w99 w4 w5 w99"}, {"text": "w6"}]
    data = write_lines(tmp_path / "d.jsonl", lines)
    out = tmp_path / "out.jsonl"
    arguments = ("--data", data, "--out", out, "--separator", "w99", "--label", "good")
    result = cli("label", "--teacher", tmp_path / "prm", *arguments)
    assert result.status == 0, result.stderr
    assert [(line["prompt"], line["text"]) for line in read_lines(out)] == [
        ("w50", " w3 w99"),
        ("w50 w3 w99", " w4 w5 w99"),
        ("", "w6"),
    ]


def test_a_killed_run_goes_on_where_it_stopped(
    tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher(tmp_path / "rm")
    data = write_lines(tmp_path / "d.jsonl", [{"text": text} for text in TEXTS])
    whole = ("label", "--teacher", tmp_path / "rm", "--data", data, "--batch-size", 1, "--out")
    assert cli(*whole, tmp_path / "whole.jsonl").status == 0
    monkeypatch.setattr(labelling, "_WINDOW", 2)
    scored: list[str] = []
    real = Teacher.score

    def failing(self: Teacher, passages: list[Passage]) -> list[tuple[float, ...]]:
        scored.extend(passage.response for passage in passages)
        if len(scored) == 4:
            raise KeyboardInterrupt
        return real(self, passages)

    monkeypatch.setattr(Teacher, "score", failing)
    out = tmp_path / "out.jsonl"
    assert cli(*whole, out).status == 130
    assert not out.exists()
    partial = labelling.partial_path(out)
    partial.write_bytes(partial.read_bytes() + b"[0.1")  # half a line, as a kill leaves one
    with partial.open("rb") as other:
        assert hold(other.fileno())
        refused = cli(*whole, out)
    assert (refused.status, "is being written by another run" in refused.stderr) == (2, True)
    refused = cli(*whole, out, "--every", 2)
    assert (refused.status, "is what another run left" in refused.stderr) == (2, True)
    scored.clear()
    result = cli(*whole, out)
    assert result.status == 0, result.stderr
    assert sorted(scored) == sorted(TEXTS[2:])
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    scored.clear()
    assert cli(*whole, out).status == 0  # complete: nothing is scored
    assert scored == []
    assert not partial.exists()


def test_train_labels_and_learns_in_one_command(tmp_path: Path, cli: Cli) -> None:
    teacher(tmp_path / "rm")
    data = write_lines(tmp_path / "d.jsonl", [{"text": text} for text in TEXTS])
    checkpoint = tiny.write_checkpoint(tmp_path / "ckpt", base=tmp_path / "rm-base")
    result = cli(
        "train", checkpoint, "--data", data, "--teacher", tmp_path / "rm", "--max-steps", 2
    )
    assert result.status == 0, result.stderr
    assert "labels     " in result.stderr
    report = json.loads((checkpoint / "training_report.json").read_text())
    assert "d.rm.jsonl" in json.dumps(report)
    assert len(read_lines(tmp_path / "d.rm.jsonl")) == len(TEXTS)


def test_equal_scores_are_zero() -> None:
    assert Scale.of([2.0, 2.0]).apply(2.0) == 0.0
    assert Scale(0.0, 1.0).apply(5.0) == 1.0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("no", "line 1: "),
        ("[]", "line 1: expected a JSON object"),
        ('{"prompt": "a"}', "line 1: expected one of response and text; its columns: prompt"),
        ('{"text": 5}', "line 1: text must be text, got 5"),
        ('{"text": " "}', "line 1: text is empty"),
        ("", "it holds no texts"),
    ],
)
def test_a_wrong_line_is_named_before_the_teacher_is_loaded(
    tmp_path: Path, cli: Cli, line: str, message: str
) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(line + "\n")
    result = cli("label", "--teacher", tmp_path, "--data", data, "--out", tmp_path / "out.jsonl")
    assert result.status == 2
    assert message in result.stderr


def test_what_is_no_teacher_is_refused(tmp_path: Path, cli: Cli) -> None:
    teacher(tmp_path / "prm", "TokenClassification", 2)
    data = write_lines(tmp_path / "d.jsonl", [{"text": "a"}])
    common = ("--data", data, "--out", tmp_path / "out.jsonl")
    cases = {
        "is no teacher: its architecture is 'LlamaForCausalLM'": (tmp_path / "prm-base",),
        "has 2 labels; choose one: --label good": (tmp_path / "prm",),
        "has no choice 'best'; its labels: bad, good": (tmp_path / "prm", "--label", "best"),
        "has no chat template": (tmp_path / "prm", "--label", "good", "--chat"),
        "does not exist": (tmp_path / "nothing",),
    }
    for message, (directory, *options) in cases.items():
        result = cli("label", "--teacher", directory, *common, *options)
        assert (result.status, message in result.stderr) == (2, True), result.stderr
