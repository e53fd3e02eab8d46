"""Training data: JSON lines to token rows, and rows to batches of similar length."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from otter_export.config import Signal
from otter_export.errors import ConfigError

#: Fields of a line, by objective: (required, optional).
FIELDS = {
    "regression": "{text, score}, or {prompt, text, score} ('response' is accepted for 'text')",
    "pairwise": "{prompt, chosen, rejected}",
}
_MAX_PROBLEMS = 20


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

    def read(self, path: Path) -> list[Item]:
        """Read a JSON lines file; blank lines are skipped.

        Raises:
            ConfigError: The file is missing or empty, or lines are malformed; up to 20 bad lines
                are listed, each with its number.
        """
        if not path.is_file():
            raise ConfigError(f"{path} does not exist; give a JSON lines file with --data")
        items: list[Item] = []
        problems: list[str] = []
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if not raw.strip():
                    continue
                try:
                    items.append(self._item(number, _parse(raw)))
                except _BadLineError as error:
                    problems.append(f"line {number}: {error}")
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
        return items

    def _item(self, number: int, line: dict[str, Any]) -> Item:
        if self.objective == "pairwise":
            _check_fields(line, {"prompt", "chosen", "rejected"})
            chosen, rejected = _text(line, "chosen"), _text(line, "rejected")
            if chosen == rejected:
                raise _BadLineError("chosen and rejected are the same text")
            prompt = _text(line, "prompt", empty=True)
            return Item(number, (self._row(prompt, chosen), self._row(prompt, rejected)))
        name = "response" if "response" in line else "text"
        _check_fields(line, {name, "score"} | ({"prompt"} & set(line)))
        prompt = _text(line, "prompt", empty=True) if "prompt" in line else ""
        row = self._row(prompt, _text(line, name))
        return Item(number, (row,), self._score(line["score"]))

    def _score(self, value: Any) -> float:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise _BadLineError(f"score must be a finite number, got {value!r}")
        score = float(value) / self.score_scale
        if self.signal.bounds is not None:
            low, high = self.signal.bounds
            if not low <= score <= high:
                raise _BadLineError(
                    f"score {value!r}"
                    + (f" / {self.score_scale:g} = {score:g}" if self.score_scale != 1 else "")
                    + f" is outside the bounds [{low:g}, {high:g}] of signal {self.signal.name!r}; "
                    "divide the scores with --score-scale"
                )
        return score

    def _row(self, prompt: str, response: str) -> Row:
        head = self.tokenizer.encode(prompt, add_special_tokens=True)
        tail = self.tokenizer.encode(response, add_special_tokens=False)
        if not tail:
            raise _BadLineError("the response has no tokens")
        tail = tail if self.end_id is None else [*tail, self.end_id]
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
    differences = {"missing": required - set(line), "unknown": set(line) - required}
    parts = [f"{what} {', '.join(sorted(names))}" for what, names in differences.items() if names]
    if parts:
        raise _BadLineError("; ".join(parts))


def _text(line: dict[str, Any], name: str, empty: bool = False) -> str:
    value = line[name]
    if not isinstance(value, str) or not (empty or value.strip()):
        raise _BadLineError(f"{name} must be a non-empty string, got {value!r:.60}")
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
