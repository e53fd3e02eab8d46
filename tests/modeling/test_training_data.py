"""L0: training data from JSON lines; each bad line is one clear message with its number."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from otter_export.errors import ConfigError
from otter_export.modeling.data import Item, Reader, Row, batches, epoch_groups, overlap, split
from otter_export.signals import Signal
from tests import tiny
from tests.pipes import written_pipe


class WordTokenizer:
    """``w7`` is token 7; special tokens put a 1 in front, even of an empty text."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return ([1] if add_special_tokens else []) + [int(word[1:]) for word in text.split()]


class PlainTokenizer(WordTokenizer):
    """Adds nothing, as most decoder-only tokenizers do."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return super().encode(text, add_special_tokens=False)


def reader(objective: str = "regression", **options: object) -> Reader:
    fields = {"signal": tiny.REWARD, "tokenizer": PlainTokenizer(), "end_id": 2} | options
    return Reader(objective, **fields)  # type: ignore[arg-type]


def read(tmp_path: Path, lines: list[object], **options: object) -> list[Item]:
    path = tmp_path / "data.jsonl"
    raw = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    path.write_bytes(b"\n".join(raw))
    return reader(**options).read(path)  # type: ignore[arg-type]


def test_rows_of_regression(tmp_path: Path) -> None:
    items = read(
        tmp_path,
        [
            {"text": "w5 w6", "score": 0.5},
            b"",
            {"prompt": "w3 w4", "response": "w5", "score": -1},
            {"prompt": "", "text": "w9", "score": 0},
        ],
    )
    assert items == [
        Item(1, (Row((5, 6, 2), 0),), 0.5),
        Item(3, (Row((3, 4, 5, 2), 2),), -1.0),
        Item(4, (Row((9, 2), 0),), 0.0),
    ]


def test_rows_of_pairs(tmp_path: Path) -> None:
    line = {"prompt": "w3", "chosen": "w5 w6", "rejected": "w7"}
    (item,) = read(tmp_path, [line], objective="pairwise")
    assert item.rows == (Row((3, 5, 6, 2), 1), Row((3, 7, 2), 1))
    assert item.length == 4


def test_tokens_that_the_tokenizer_adds_belong_to_the_prompt(tmp_path: Path) -> None:
    (item,) = read(tmp_path, [{"text": "w5", "score": 0}], tokenizer=WordTokenizer())
    assert item.rows == (Row((1, 5, 2), 1),)


def test_what_is_put_around_a_text_comes_once_where_the_text_has_it(tmp_path: Path) -> None:
    lines = [{"text": "w1 w5 w2", "score": 0}, {"prompt": "w3", "response": "w1 w2", "score": 1}]
    written, answer = read(tmp_path, lines, tokenizer=WordTokenizer())
    assert written.rows == (Row((1, 5, 2), 1),)
    assert answer.rows == (Row((1, 3, 1, 2), 2),)  # inside of a text the token stays


def test_q_values_start_after_the_first_token(tmp_path: Path) -> None:
    (item,) = read(tmp_path, [{"text": "w5 w6", "score": 0}], signal=tiny.NEXT)
    assert item.rows == (Row((5, 6, 2), 1),)


def test_scores_are_divided_and_long_texts_cut(tmp_path: Path) -> None:
    lines = [{"text": "w5 w6 w7 w8", "score": 3}]
    (item,) = read(tmp_path, lines, score_scale=4.0, max_tokens=3, end_id=None)
    assert item == Item(1, (Row((5, 6, 7), 0),), 0.75)


def test_rows_of_labelled_texts(tmp_path: Path) -> None:
    lines = [
        {"text": "w5 w6", "label": "expert"},
        {"prompt": "w3", "response": "w5", "label": "anti"},
        {"text": "w7", "label": "neutral"},
    ]
    style = Signal("style", "expert", "identity", None)
    items = read(tmp_path, lines, objective="experts", signal=style)
    assert [item.score for item in items] == [1.0, -1.0, 0.0]
    # Something has to predict the first token that is supervised.
    assert [item.rows[0].start for item in items] == [1, 1, 1]
    with pytest.raises(ConfigError, match="every label is neutral; there is nothing to learn"):
        read(tmp_path, [lines[2], lines[2]], objective="experts", signal=style)


def test_rows_of_plain_texts(tmp_path: Path) -> None:
    ahead = Signal("ahead", "medusa", "identity", None, 2)
    lines = [{"text": "w5", "domain": "code"}, {"prompt": "w3", "text": "w5 w6"}]
    first, second = read(tmp_path, lines, objective="drafts", signal=ahead)
    assert first == Item(1, (Row((5, 2), 0),), domain="code")
    assert second == Item(2, (Row((3, 5, 6, 2), 1),))
    (batch,) = batches([first, second], 100)
    assert batch.domains == ("code", "")


GOOD = {"text": "w5", "score": 0.5}
PAIR = {"prompt": "w3", "chosen": "w4", "rejected": "w5"}
BAD_LINES: dict[str, tuple[str, object, str]] = {
    "not JSON": ("regression", b"{text: 1}", "not JSON"),
    "not UTF-8": ("regression", b'{"text": "\xff"}', "not JSON"),
    "a list": ("regression", [1, 2], "expected a JSON object, got list"),
    "too deep": ("regression", b"[" * 100_000, "not JSON"),
    "no score": ("regression", {"text": "w5"}, "missing score"),
    "no text": ("regression", {"score": 1}, "missing text"),
    "misspelt field": (
        "regression",
        GOOD | {"promt": "w3"},
        "unknown 'promt'; did you mean prompt",
    ),
    "text and response": ("regression", GOOD | {"response": "w5"}, "both text and response"),
    "text is a number": ("regression", {"text": 5, "score": 0}, "text must be a non-empty string"),
    "text is empty": ("regression", {"text": " ", "score": 0}, "text must be a non-empty string"),
    "half a surrogate": ("regression", {"text": "\ud800", "score": 0}, "not valid Unicode"),
    "score is text": ("regression", {"text": "w5", "score": "1"}, "must be a finite number"),
    "score is true": ("regression", {"text": "w5", "score": True}, "must be a finite number"),
    "score is NaN": ("regression", b'{"text": "w5", "score": NaN}', "must be a finite number"),
    "score is huge": ("regression", b'{"text": "w5", "score": 1e999}', "must be a finite number"),
    "score is outside": ("regression", {"text": "w5", "score": 2}, "outside the bounds [-1, 1]"),
    "prompt is null": ("regression", GOOD | {"prompt": None}, "prompt must be"),
    "prompt fills the row": (
        "regression",
        GOOD | {"prompt": "w3 " * 16},
        "no token of the response is left",
    ),
    "score has many digits": ("regression", GOOD | {"score": 10**400}, "must be a finite number"),
    "no chosen": ("pairwise", {"prompt": "w3", "rejected": "w5"}, "missing chosen"),
    "equal pair": ("pairwise", PAIR | {"rejected": "w4"}, "the same text"),
    "no label": ("experts", {"text": "w5"}, "missing label"),
    "unknown label": ("experts", {"text": "w5", "label": "good"}, "one of expert, anti, neutral"),
    "label is a number": ("experts", {"text": "w5", "label": 1}, "one of expert, anti, neutral"),
    "label is a list": ("experts", {"text": "w5", "label": []}, "one of expert, anti, neutral"),
    "text and response both": (
        "drafts",
        {"text": "w5", "response": "w5"},
        "both text and response",
    ),
    "domain is a number": ("drafts", {"text": "w5", "domain": 5}, "domain must be"),
    "regression data": ("pairwise", GOOD, "missing chosen, rejected; its columns: score, text"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_bad_line(tmp_path: Path, case: str) -> None:
    objective, line, message = BAD_LINES[case]
    others = {"experts": {"text": "w5", "label": "anti"}, "drafts": {"text": "w5"}}
    good = {"regression": GOOD, "pairwise": PAIR, **others}[objective]
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, [good, line], objective=objective, max_tokens=16)
    text = str(caught.value)
    assert message in text
    assert "line 2: " in text
    assert "\n" not in text
    assert "line 1: " not in text


def test_bad_lines_are_listed_together_up_to_twenty(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, [{"text": "w5"}] * 30)
    assert str(caught.value).count(": missing score") == 20


def test_files_come_as_they_are(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "data.jsonl"
    lines = [
        b'\xef\xbb\xbf{"chosen": "w4", "rejected": "w5"}',
        b"",
        b'{"prompt": "", "chosen": "w4 w3", "rejected": "w5", "source": "a", "score": 2}',
    ]
    path.write_bytes(b"\r\n".join(lines))
    first, second = reader(objective="pairwise").read(str(path))
    assert (first.line, second.line) == (1, 3)
    assert first.rows[1] == Row((5, 2), 0)
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: columns that are not used: score, source"
    ]


def test_a_pipe_will_do(tmp_path: Path) -> None:
    path = written_pipe(tmp_path / "pipe", b'{"text": "w5", "score": 0.5}\n')
    assert len(reader().read(path)) == 1


def test_a_beginning_that_the_tokenizer_adds_comes_once(tmp_path: Path) -> None:
    class Beginning:
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            ids = [1 if word == "<s>" else len(word) for word in text.split()]
            return [1, *ids] if add_special_tokens else ids

    prompts = ("abc", "<s> abc")
    lines = [{"prompt": p, "text": "ab", "score": i} for i, p in enumerate(prompts)]
    items = read(tmp_path, lines, tokenizer=Beginning(), end_id=None)
    assert [item.rows[0] for item in items] == [Row((1, 3, 2), 2)] * 2


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        reader().read(tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="holds no data"):
        read(tmp_path, [b"", b"  "])


def test_constant_scores_teach_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"every score is 0\.5; there is nothing to learn"):
        read(tmp_path, [GOOD, GOOD | {"text": "w6"}])


def test_unbounded_signals_take_any_score(tmp_path: Path) -> None:
    signal = Signal("reward", "value", "identity", None)
    (item,) = read(tmp_path, [{"text": "w5", "score": -40}], signal=signal)
    assert item.score == -40.0


def items_of(lengths: list[int]) -> list[Item]:
    return [Item(i, (Row(tuple(range(n)), 0),), i / 1000) for i, n in enumerate(lengths)]


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=60),
    st.integers(16, 200),
    st.integers(0, 9),
)
def test_batches_hold_every_item_once_within_the_budget(
    lengths: list[int], budget: int, seed: int
) -> None:
    items = items_of(lengths)
    made = list(batches(items, budget, np.random.default_rng(seed)))
    scores = sorted(round(float(s) * 1000) for batch in made for s in batch.scores)
    assert scores == list(range(len(items)))
    assert sum(batch.tokens for batch in made) == sum(lengths)
    for batch in made:
        assert batch.ids.numel() <= budget or len(batch.ids) == 1


def test_epochs_differ_and_repeat() -> None:
    items = items_of([5] * 40)

    def order(seed: int, epoch: int) -> list[float]:
        return [item.score for group in epoch_groups(items, 20, seed, epoch) for item in group]

    assert order(0, 0) == order(0, 0)
    assert order(0, 0) != order(0, 1)
    assert order(0, 0) != order(1, 0)


@given(st.integers(2, 50), st.floats(0.01, 0.99), st.integers(0, 5))
def test_split_is_disjoint_and_complete(count: int, fraction: float, seed: int) -> None:
    items = items_of([3] * count)
    train, held_out = split(items, fraction, seed)
    assert train
    assert held_out
    assert sorted(i.line for i in train + held_out) == list(range(count))
    assert (train, held_out) == split(items, fraction, seed)


def test_one_line_cannot_be_split() -> None:
    with pytest.raises(ConfigError, match="--eval-data"):
        split(items_of([3]), 0.1, 0)


def test_overlap_ignores_prompts() -> None:
    one = [Item(1, (Row((3, 4, 5), 1),)), Item(2, (Row((6,), 0), Row((7,), 0)))]
    other = [Item(1, (Row((9, 9, 4, 5), 2),)), Item(2, (Row((7,), 0),)), Item(3, (Row((8,), 0),))]
    assert overlap(one, other) == 2
