"""Training data: JSON lines to token rows, and rows to batches of similar length."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from otter_export.arguments import number, path_argument
from otter_export.errors import ConfigError, RequestError
from otter_export.json_lines import STDIN, read_lines
from otter_export.quoting import listed, nearest, one_line, quoted
from otter_export.signals import Signal

#: Fields of a line, by objective: (required, optional).
FIELDS = {
    "regression": "{text, score}, or {prompt, text, score} ('response' is accepted for 'text')",
    "pairwise": "{chosen, rejected} or {prompt, chosen, rejected}",
}
#: What `Reader` looks at; all else in a line is left out.
_COLUMNS = {
    "regression": ("prompt", "text", "response", "score"),
    "pairwise": ("prompt", "chosen", "rejected"),
}
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
    """One line of the data: one row and its score, or the chosen row and the rejected one."""

    line: int
    rows: tuple[Row, ...]
    score: float = 0.0

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
    """

    ids: Tensor
    supervised: Tensor
    scores: Tensor

    @property
    def tokens(self) -> int:
        """Number of supervised positions."""
        return int(self.supervised.sum())


@dataclasses.dataclass(frozen=True)
class Reader:
    """Turns lines into items.

    Args:
        objective: ``regression`` or ``pairwise``.
        signal: Its bounds limit the scores; a ``q_value`` signal needs a token before the first
            supervised one.
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
        items: list[Item] = []
        problems: list[str] = []
        extra: set[str] = set()
        lines = read_lines(path, "training data", limit=_LIMIT_BYTES, error=ConfigError)
        for line_number, raw in lines:
            try:
                line = _parse(raw)
                extra |= _extra_columns(line, _COLUMNS[self.objective])
                items.append(self._item(line_number, line))
            except (_BadLineError, RequestError) as error:
                problems.append(f"line {line_number}: {one_line(str(error), _PROBLEM_LENGTH)}")
                if len(problems) == _MAX_PROBLEMS:
                    break
        if problems:
            raise ConfigError(f"{path}: {'; '.join(problems)}; a line is {FIELDS[self.objective]}")
        if not items:
            raise ConfigError(f"{path} holds no data; a line is {FIELDS[self.objective]}")
        if self.objective == "regression" and len({item.score for item in items}) == 1 < len(items):
            raise ConfigError(
                f"{path}: every score is {items[0].score:g}; there is nothing to learn"
            )
        if extra:
            _LOG.warning("%s: columns that are not used: %s", one_line(str(path)), listed(extra))
        return items

    def _item(self, line_number: int, line: dict[str, Any]) -> Item:
        if self.objective == "pairwise":
            _check_fields(line, {"chosen", "rejected"})
            chosen, rejected = _text(line, "chosen"), _text(line, "rejected")
            if chosen == rejected:
                raise _BadLineError("chosen and rejected are the same text")
            prompt = _text(line, "prompt", empty=True) if "prompt" in line else ""
            return Item(line_number, (self._row(prompt, chosen), self._row(prompt, rejected)))
        name = "response" if "response" in line else "text"
        if {"text", "response"} <= set(line):
            raise _BadLineError("there are both text and response; give one of them")
        _check_fields(line, {name, "score"})
        prompt = _text(line, "prompt", empty=True) if "prompt" in line else ""
        row = self._row(prompt, _text(line, name))
        return Item(line_number, (row,), self._score(line["score"]))

    def _score(self, value: Any) -> float:
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
        if self.signal.kind == "q_value":
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
    return Batch(ids, supervised, scores)
