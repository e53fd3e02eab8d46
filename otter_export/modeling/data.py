"""Training data: JSON lines to token rows, and rows to batches of similar length."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from otter_export.arguments import number, path_argument
from otter_export.errors import ConfigError, RequestError
from otter_export.json_lines import STDIN, read_lines
from otter_export.quoting import listed, nearest, one_line, quoted
from otter_export.signals import Scores, Signal, kind_of

#: What a text is an example of, and the score of its item: data of the objective ``experts``.
LABELS = {"expert": 1.0, "anti": -1.0, "neutral": 0.0}
#: How similar a column must be to one of these to be taken for a misspelt one.
_MISSPELT = 0.8
_MAX_PROBLEMS = 20
_PROBLEM_LENGTH = 200
_LIMIT_BYTES = 16 << 30

_LOG = logging.getLogger(__name__)


class Tokenizer(Protocol):
    """The part of a Hugging Face tokenizer that training needs."""

    def encode(self, text: str, add_special_tokens: bool = ...) -> list[int]:
        """Token ids of a text."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One tokenised text: ``ids`` with the prompt's tokens first, ``start`` of them."""

    ids: tuple[int, ...]
    start: int


@dataclasses.dataclass(frozen=True)
class Item:
    """One line of the data: one row and its score, or the chosen row and the rejected one.

    The score of a labelled text is that of its label (`LABELS`). ``domain`` is what metrics may be
    reported by.
    """

    line: int
    rows: tuple[Row, ...]
    score: float = 0.0
    domain: str = ""

    @property
    def length(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.ids) for row in self.rows)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Rows of similar length, padded on the right.

    Attributes:
        ids: int64 ``[R, S]``; causal attention makes a padding mask unnecessary.
        supervised: bool ``[R, S]``; True at every token of the response.
        scores: float32 ``[R]``; zero for pairwise data, whose rows come as chosen, rejected, ...
        domains: R names, empty for none.
    """

    ids: Tensor
    supervised: Tensor
    scores: Tensor
    domains: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Number of supervised positions."""
        return int(self.supervised.sum())


@dataclasses.dataclass(frozen=True)
class Reader:
    """Turns lines into items.

    Args:
        objective: One of `FORMATS`.
        signal: Its bounds limit the scores; one that scores next tokens needs a token before the
            first supervised one.
        tokenizer: Encodes prompt and response apart, as they are at generation.
        end_id: Appended to every response so that stopping is scored too; None appends nothing.
        score_scale: Scores are divided by it.
        max_tokens: Longer rows are cut on the right.
    """

    objective: str
    signal: Signal
    tokenizer: Tokenizer
    end_id: int | None
    score_scale: float = 1.0
    max_tokens: int = 1024

    def read(self, path: str | Path) -> list[Item]:
        """Read a JSON lines file, once and in order; blank lines and other columns are left out.

        Args:
            path: The file; a pipe will do, and ``-`` is standard input.

        Raises:
            ConfigError: The file is missing or empty, or lines are malformed; up to 20 bad lines
                are listed, each with its number.
        """
        path = path_argument("path", path, ConfigError)
        if path != STDIN and not path.exists():
            raise ConfigError(f"{path} does not exist; give a JSON lines file with --data")
        form = FORMATS[self.objective]
        items: list[Item] = []
        problems: list[str] = []
        extra: set[str] = set()
        lines = read_lines(path, "training data", limit=_LIMIT_BYTES, error=ConfigError)
        for line_number, raw in lines:
            try:
                line = _parse(raw)
                extra |= _extra_columns(line, form.columns)
                items.append(form.item(self, line_number, line))
            except (_BadLineError, RequestError) as error:
                problems.append(f"line {line_number}: {one_line(str(error), _PROBLEM_LENGTH)}")
                if len(problems) == _MAX_PROBLEMS:
                    break
        if problems:
            raise ConfigError(f"{path}: {'; '.join(problems)}; a line is {form.line}")
        if not items:
            raise ConfigError(f"{path} holds no data; a line is {form.line}")
        if len(items) > 1 and (useless := form.useless(items)):
            raise ConfigError(f"{path}: {useless}; there is nothing to learn")
        if extra:
            _LOG.warning("%s: columns that are not used: %s", one_line(str(path)), listed(extra))
        return items

    def score(self, value: Any) -> float:
        """A line's score, scaled; the signal must be able to reach it."""
        score = number("score", value) / self.score_scale
        if self.signal.bounds is not None:
            low, high = self.signal.bounds
            if not low <= score <= high:
                raise _BadLineError(
                    f"score {quoted(value)}"
                    + (f" / {self.score_scale:g} = {score:g}" if self.score_scale != 1 else "")
                    + f" is outside the bounds [{low:g}, {high:g}] of signal {self.signal.name!r}; "
                    "divide the scores with --score-scale"
                )
        return score

    def row(self, line: dict[str, Any], name: str) -> Row:
        """The tokens of a line's prompt, if it has one, and of its column ``name``."""
        prompt = _text(line, "prompt", empty=True) if "prompt" in line else ""
        return self._row(prompt, _text(line, name))

    def _row(self, prompt: str, response: str) -> Row:
        head = self._prompt_ids(prompt)
        tail = self.tokenizer.encode(response, add_special_tokens=False)
        # What the tokenizer and this function put around a text comes once, also if it is written.
        if head and not prompt and tail[: len(head)] == head:
            tail = tail[len(head) :]
        if not tail:
            raise _BadLineError("the response has no tokens")
        if self.end_id is not None and tail[-1] != self.end_id:
            tail.append(self.end_id)
        ids = (head + tail)[: self.max_tokens]
        start = len(head)
        if kind_of(self.signal).scores is Scores.NEXT:
            start = max(start, 1)  # the first token has no row before it that could score it
        if start >= len(ids):
            raise _BadLineError(
                f"no token of the response is left to score: the prompt has {len(head)} tokens, "
                f"rows are cut at {self.max_tokens}"
            )
        return Row(tuple(ids), start)

    def _prompt_ids(self, prompt: str) -> list[int]:
        """Token ids of a prompt; what the tokenizer puts before a text comes once."""
        ids = self.tokenizer.encode(prompt, add_special_tokens=True)
        if len(ids) > 1 and ids[0] == ids[1]:
            first = self.tokenizer.encode("", add_special_tokens=True)[:1]
            return ids[1:] if first == ids[:1] else ids
        return ids


class _BadLineError(Exception):
    """What is wrong with one line."""


@dataclasses.dataclass(frozen=True)
class Format:
    """What a line of the data of an objective is.

    Args:
        line: Its columns, in words.
        columns: All that are looked at; any others in a line are left out.
        item: Makes an item of a line.
        useless: What makes all items together useless, or nothing.
    """

    line: str
    columns: tuple[str, ...]
    item: Callable[[Reader, int, dict[str, Any]], Item]
    useless: Callable[[Sequence[Item]], str] = lambda items: ""


def _scored(reader: Reader, number: int, line: dict[str, Any]) -> Item:
    text = _text_column(line, "score")
    return Item(number, (reader.row(line, text),), reader.score(line["score"]))


def _pair(reader: Reader, number: int, line: dict[str, Any]) -> Item:
    _check_fields(line, {"chosen", "rejected"})
    rows = reader.row(line, "chosen"), reader.row(line, "rejected")
    if line["chosen"] == line["rejected"]:
        raise _BadLineError("chosen and rejected are the same text")
    return Item(number, rows)


def _labelled(reader: Reader, number: int, line: dict[str, Any]) -> Item:
    text, label = _text_column(line, "label"), line["label"]
    if not isinstance(label, str) or label not in LABELS:
        raise _BadLineError(f"label must be one of {', '.join(LABELS)}, got {quoted(label, 60)}")
    return Item(number, (reader.row(line, text),), LABELS[label])


def _plain(reader: Reader, number: int, line: dict[str, Any]) -> Item:
    row = reader.row(line, _text_column(line))
    domain = _text(line, "domain", empty=True) if "domain" in line else ""
    return Item(number, (row,), domain=domain)


def _text_column(line: dict[str, Any], *others: str) -> str:
    """``text``, or ``response`` where a line calls it that; other columns that it must have too."""
    if {"text", "response"} <= set(line):
        raise _BadLineError("there are both text and response; give one of them")
    name = "response" if "response" in line else "text"
    _check_fields(line, {name, *others})
    return name


def _same_score(items: Sequence[Item]) -> str:
    scores = {item.score for item in items}
    return f"every score is {scores.pop():g}" if len(scores) == 1 else ""


def _all_neutral(items: Sequence[Item]) -> str:
    return "" if any(item.score for item in items) else "every label is neutral"


_TEXT = ("prompt", "text", "response")
_OR_RESPONSE = "('response' is accepted for 'text')"
_PLAIN = Format(
    f"{{text}} or {{prompt, text}}, and domain if you like {_OR_RESPONSE}",
    (*_TEXT, "domain"),
    _plain,
)
#: By objective.
FORMATS = {
    "regression": Format(
        f"{{text, score}}, or {{prompt, text, score}} {_OR_RESPONSE}",
        (*_TEXT, "score"),
        _scored,
        _same_score,
    ),
    "pairwise": Format(
        "{chosen, rejected} or {prompt, chosen, rejected}",
        ("prompt", "chosen", "rejected"),
        _pair,
    ),
    "experts": Format(
        f"{{text, label}} or {{prompt, text, label}} {_OR_RESPONSE}, label one of "
        f"{', '.join(LABELS)}",
        (*_TEXT, "label"),
        _labelled,
        _all_neutral,
    ),
    "drafts": _PLAIN,
    "distill": _PLAIN,
}


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        line = json.loads(raw.decode("utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise _BadLineError(f"not JSON ({error})") from None
    if not isinstance(line, dict):
        raise _BadLineError(f"expected a JSON object, got {type(line).__name__}")
    return line


def _check_fields(line: dict[str, Any], required: set[str]) -> None:
    if missing := required - set(line):
        raise _BadLineError(f"missing {listed(missing)}; its columns: {listed(line)}")


def _extra_columns(line: dict[str, Any], known: tuple[str, ...]) -> set[str]:
    """Columns that are not used, such as a data set's own ids; a misspelt name is an error."""
    extra = set(line).difference(known)
    for name in extra:
        near = nearest(name, known, _MISSPELT)
        if near is not None and near not in line:
            raise _BadLineError(f"unknown {quoted(name)}; did you mean {near}?")
    return extra


def _text(line: dict[str, Any], name: str, empty: bool = False) -> str:
    value = line[name]
    if not isinstance(value, str) or not (empty or value.strip()):
        raise _BadLineError(f"{name} must be a non-empty string, got {quoted(value, 60)}")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise _BadLineError(f"{name} is not valid Unicode (half of a surrogate pair)")
    return value


def split(items: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Split into training and held-out items; at least one of each.

    Raises:
        ConfigError: There are fewer than two items.
    """
    if len(items) < 2:
        raise ConfigError("one line of data cannot be split; add lines or give --eval-data")
    order = np.random.default_rng([seed, 0]).permutation(len(items))
    held = min(max(round(fraction * len(items)), 1), len(items) - 1)
    chosen = set(order[:held].tolist())
    train = [item for i, item in enumerate(items) if i not in chosen]
    return train, [items[i] for i in sorted(chosen)]


def overlap(one: Sequence[Item], other: Sequence[Item]) -> int:
    """How many items of ``other`` have a response that ``one`` has too, whatever the prompt."""

    def responses(item: Item) -> frozenset[tuple[int, ...]]:
        return frozenset(row.ids[row.start :] for row in item.rows)

    known = {response for item in one for response in responses(item)}
    return sum(not known.isdisjoint(responses(item)) for item in other)


def grouped(
    items: Sequence[Item], budget: int, order: np.random.Generator | None = None
) -> list[list[Item]]:
    """Group items of similar length, at most ``budget`` padded tokens in each group.

    Args:
        items: What to group.
        budget: Tokens per group, padding included; a longer item is a group by itself.
        order: Shuffles which items of one length meet, and the groups; None keeps them sorted.
    """
    noise = np.zeros(len(items)) if order is None else order.random(len(items)) * 2
    # Up to two tokens of noise mix neighbouring lengths, so that groups differ between epochs.
    by_length = sorted(range(len(items)), key=lambda i: (items[i].length + noise[i], i))
    groups: list[list[Item]] = []
    rows = longest = 0
    for i in by_length:
        item = items[i]
        rows, longest = rows + len(item.rows), max(longest, item.length)
        if not groups or rows * longest > budget:
            groups.append([])
            rows, longest = len(item.rows), item.length
        groups[-1].append(item)
    if order is not None:
        groups = [groups[i] for i in order.permutation(len(groups))]
    return groups


def batches(
    items: Sequence[Item], budget: int, order: np.random.Generator | None = None
) -> Iterator[Batch]:
    """The batches of `grouped`, each made when its turn comes."""
    return map(collate, grouped(items, budget, order))


def epoch_groups(items: Sequence[Item], budget: int, seed: int, epoch: int) -> list[list[Item]]:
    """The batches of one epoch: a function of seed and epoch alone, so that a run can resume."""
    return grouped(items, budget, np.random.default_rng([seed, 1, epoch]))


def collate(items: Sequence[Item]) -> Batch:
    """Pad items into one batch."""
    rows = [row for item in items for row in item.rows]
    size = max(len(row.ids) for row in rows)
    ids = torch.zeros((len(rows), size), dtype=torch.long)
    supervised = torch.zeros((len(rows), size), dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, : len(row.ids)] = torch.tensor(row.ids)
        supervised[i, row.start : len(row.ids)] = True
    scores = torch.tensor([item.score for item in items for _ in item.rows], dtype=torch.float32)
    domains = tuple(item.domain for item in items for _ in item.rows)
    return Batch(ids, supervised, scores, domains)
