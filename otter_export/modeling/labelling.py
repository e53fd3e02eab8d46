"""Labels of a teacher for texts: lines that ``train --objective regression`` reads.

A response is scored at its end, at the end of every k-th word or of every step; each piece becomes
a line of its own, whose prompt is all that came before it, so that a token is supervised by the
score of the piece that it is in. Raw scores are appended to a file as they come, and a run that was
interrupted goes on behind them. At the end they are standardised, and the labels written at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from otter_export.arguments import integer, keep
from otter_export.config import read_json
from otter_export.errors import ConfigError
from otter_export.files import check_writable, hold, replacing, write_json
from otter_export.json_lines import read_lines
from otter_export.modeling.teacher import Passage, Teacher
from otter_export.quoting import listed, quoted

#: Standard deviations from the mean that are a score of 1; what is farther is 1 too.
SPREAD = 3.0
_LIMIT_BYTES = 16 << 30
_MAX_PROBLEMS = 20
#: Batches that are sorted by length together, so that little is padding.
_WINDOW = 16


@dataclasses.dataclass(frozen=True)
class Places:
    """Where responses are scored: always at the end.

    Args:
        every: After every so many words too; None: not.
        separator: At the end of each step too, which this text ends; None: there are no steps.

    Raises:
        ConfigError: Both are given, or one is out of range.
    """

    every: int | None = None
    separator: str | None = None

    def __post_init__(self) -> None:
        if self.every is not None:
            keep(self, every=integer("every", self.every, least=1, error=ConfigError))
        if self.separator == "" or (self.every is not None and self.separator is not None):
            raise ConfigError("give every or a separator of at least one character, not both")

    def ends(self, response: str) -> tuple[int, ...]:
        """Characters of the response up to each place, the last one its end."""
        found = []
        if self.separator is not None:
            at = response.find(self.separator)
            while at >= 0:
                found.append(at + len(self.separator))
                at = response.find(self.separator, found[-1])
        elif self.every is not None:
            words = [match.end() for match in re.finditer(r"\S+", response)]
            found = words[self.every - 1 :: self.every]
        # What is left behind the last place, unless it is blank.
        if not found or response[found[-1] :].strip():
            return (*found, len(response))
        return tuple(found)


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of the data."""

    data: dict[str, Any]
    column: str
    passage: Passage


@dataclasses.dataclass(frozen=True)
class Scale:
    """How scores were standardised: ``clip((raw - mean) / (SPREAD * deviation), -1, 1)``."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, scores: Sequence[float]) -> Scale:
        """That of these scores; equal ones become 0."""
        return cls(statistics.fmean(scores), statistics.pstdev(scores))

    def apply(self, score: float) -> float:
        """A standardised score, in [-1, 1]."""
        far = SPREAD * self.deviation
        return max(-1.0, min(1.0, (score - self.mean) / far)) if far else 0.0


def scale_path(out: Path) -> Path:
    """The file of the constants, beside the labels."""
    return out.with_name(f"{out.name}.scale.json")


def partial_path(out: Path) -> Path:
    """The file of the raw scores of a run that is not complete."""
    return out.with_name(f"{out.name}.partial")


def label(
    teacher: Callable[[], Teacher],
    lines: Sequence[Line],
    out: Path,
    *,
    about: Mapping[str, Any],
    batch_size: int = 16,
    progress: Callable[[int], object] = lambda count: None,
) -> Scale:
    """Label the lines of a file; does nothing where the same labels are there already.

    Args:
        teacher: Loads it, when it is needed.
        lines: Of `read_texts`.
        out: Where the labels go.
        about: What the scores depend on beside the lines: a run with another does not go on.
        batch_size: Texts of a batch.
        progress: Called with the number of lines just labelled, those of an earlier run too.

    Raises:
        ConfigError: An unfinished run was another one, or is still running.
        RequestError: The teacher fails.
    """
    batch_size = integer("batch_size", batch_size, least=1, error=ConfigError)
    check_writable(out)
    partial = partial_path(out)
    # As JSON has it, to be compared with what is read.
    about = json.loads(json.dumps({**about, "texts": _digest(lines)}))
    if (known := _known(out, about)) is not None:
        return known
    with _alone(partial):
        scores = _resumed(partial, about)
        progress(len(scores))
        if len(scores) < len(lines):
            scores += _scored(teacher(), lines, len(scores), partial, about, batch_size, progress)
        scale = Scale.of([score for one in scores for score in one])
        _write(out, lines, scores, scale, about)
        partial.unlink(missing_ok=True)
    return scale


@contextlib.contextmanager
def _alone(partial: Path) -> Iterator[None]:
    """Hold the file of an unfinished run, so that two runs do not append to it.

    Raises:
        ConfigError: Another process holds it.
    """
    with partial.open("ab") as file:
        if not hold(file.fileno()):
            raise ConfigError(
                f"{partial} is being written by another run; wait for its end, or give another OUT"
            )
        try:
            yield
        finally:
            if not os.fstat(file.fileno()).st_size:  # nothing that could go on
                partial.unlink(missing_ok=True)


def read_texts(path: Path, places: Places) -> list[Line]:
    """The lines of a file, with where each is to be scored.

    Args:
        path: Lines of ``{"response"}`` or ``{"prompt", "response"}`` (``text`` is accepted for
            response); other columns are kept.
        places: Where responses are scored.

    Raises:
        ConfigError: The file is missing or empty, or lines are malformed.
    """
    found, problems = [], []
    for number, raw in read_lines(path, "texts", limit=_LIMIT_BYTES, error=ConfigError):
        try:
            found.append(_line(json.loads(raw.decode("utf-8")), places))
        except (ValueError, RecursionError) as error:
            problems.append(f"line {number}: {error}")
            if len(problems) == _MAX_PROBLEMS:
                break
    if problems or not found:
        what = "; ".join(problems) or "it holds no texts"
        raise ConfigError(
            f'{path}: {what}; a line is {{"response"}} or {{"prompt", "response"}}, "text" is '
            "accepted for response"
        )
    return found


def _line(data: object, places: Places) -> Line:
    """Raises `ValueError`, as JSON does."""
    if not isinstance(data, dict):
        raise ValueError(f"expected a JSON object, got {quoted(data, 60)}")
    columns = [name for name in ("response", "text") if name in data]
    if len(columns) != 1:
        raise ValueError(f"expected one of response and text; its columns: {listed(data)}")
    for name in ("prompt", *columns):
        if not isinstance(data.get(name, ""), str):
            raise ValueError(f"{name} must be text, got {quoted(data[name], 60)}")
    response = data[columns[0]]
    if not response.strip():
        raise ValueError(f"{columns[0]} is empty")
    passage = Passage(data.get("prompt", ""), response, places.ends(response))
    return Line(data, columns[0], passage)


def _scored(
    teacher: Teacher,
    lines: Sequence[Line],
    begin: int,
    partial: Path,
    about: Mapping[str, Any],
    batch_size: int,
    progress: Callable[[int], object],
) -> list[tuple[float, ...]]:
    """Scores of the lines from ``begin`` on, which are appended to the unfinished run's file."""
    found: list[tuple[float, ...]] = []
    with partial.open("a", encoding="utf-8") as file:
        if not begin:
            file.truncate(0)
            file.write(json.dumps(about) + "\n")
        for window in _windows(lines[begin:], batch_size * _WINDOW):
            order = sorted(range(len(window)), key=lambda i: len(window[i].passage.response))
            scores: dict[int, tuple[float, ...]] = {}
            for at in range(0, len(order), batch_size):
                batch = order[at : at + batch_size]
                answers = teacher.score([window[i].passage for i in batch])
                scores |= dict(zip(batch, answers, strict=True))
                progress(len(batch))
            made = [scores[i] for i in range(len(window))]
            file.write("".join(json.dumps(one) + "\n" for one in made))
            file.flush()
            found += made
    return found


def _windows(lines: Sequence[Line], size: int) -> Iterator[Sequence[Line]]:
    for at in range(0, len(lines), size):
        yield lines[at : at + size]


def _known(out: Path, about: Mapping[str, Any]) -> Scale | None:
    """The constants of labels that are there and were made in the same way."""
    path = scale_path(out)
    if not out.is_file() or not path.is_file():
        return None
    found = read_json(path)
    same = isinstance(found, dict) and about.items() <= found.items()
    return Scale(found["mean"], found["deviation"]) if same else None


def _resumed(partial: Path, about: Mapping[str, Any]) -> list[tuple[float, ...]]:
    """The scores of an unfinished run; a last line that was cut short does not count.

    Raises:
        ConfigError: It was another run.
    """
    content = partial.read_bytes()
    if not content:
        return []
    first, *rest = content.split(b"\n")
    try:
        same = json.loads(first) == about
    except ValueError:
        same = False
    if not same:
        raise ConfigError(
            f"{partial} is what another run left, with another teacher, other data or options; "
            "remove it, or repeat that run to its end"
        )
    whole = [first, *rest[:-1]]  # what follows the last line feed is nothing, or half a line
    partial.write_bytes(b"\n".join(whole) + b"\n")
    return [tuple(json.loads(line)) for line in whole[1:]]


def _digest(lines: Sequence[Line]) -> str:
    content = json.dumps([dataclasses.astuple(line.passage) for line in lines])
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()


def _write(
    out: Path,
    lines: Sequence[Line],
    scores: Sequence[tuple[float, ...]],
    scale: Scale,
    about: Mapping[str, Any],
) -> None:
    """The labels, a line a piece, and the constants beside them."""
    with replacing(out) as file:
        for line, values in zip(lines, scores, strict=True):
            for piece in _pieces(line, values, scale):
                file.write((json.dumps(piece) + "\n").encode("utf-8"))
    constants = {"mean": scale.mean, "deviation": scale.deviation, "spread": SPREAD}
    write_json(scale_path(out), {**constants, "lines": len(lines), **about})


def _pieces(line: Line, scores: Sequence[float], scale: Scale) -> Iterator[dict[str, Any]]:
    begin, passage = 0, line.passage
    for end, score in zip(passage.ends, scores, strict=True):
        yield {
            **line.data,
            "prompt": passage.prompt + passage.response[:begin],
            line.column: passage.response[begin:end],
            "score": scale.apply(score),
            "teacher_score": score,
        }
        begin = end
