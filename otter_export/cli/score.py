"""``otter-export score``: rewards of texts that are there already, without generation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from otter_export.cli.engine_options import check_digest, digest, placement
from otter_export.cli.progress import count_bar
from otter_export.cli.streams import until_closed
from otter_export.errors import OtterError, RequestError
from otter_export.json_lines import read_lines
from otter_export.load import load_engine
from otter_export.quoting import LIMIT, listed, one_line, quoted
from otter_export.runtime.chat import Chat
from otter_export.runtime.scoring import BATCH_SIZE, Prompt, Score, Text, check_separator
from otter_export.runtime.scoring import score as scored

#: Columns of a line; any others are left in the answer as they are.
_PROMPT, _MESSAGES, _RESPONSES = "prompt", "messages", ("response", "text")
_LIMIT_BYTES = 1 << 30
#: Problems that one message lists.
_SHOWN = 5


@click.command()
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.argument("texts", metavar="[RESPONSE]...", nargs=-1)
@click.option("--prompt", default="", metavar="TEXT", help="Before each RESPONSE.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FILE.jsonl",
    help='One {"prompt": ..., "response": ...} a line, texts or token ids; prompt may be left out, '
    "or messages stand for it, and text for response; - is standard input.",
)
@click.option(
    "--signal",
    "signals",
    multiple=True,
    metavar="NAME",
    help="May be repeated; the first is the reward.  [default: all that score tokens]",
)
@click.option(
    "--separator",
    metavar="TEXT",
    help="Also the reward at the end of each step, which this text ends; \\n is a line feed.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per text and line.")
@click.option("--batch-size", type=int, default=BATCH_SIZE, show_default=True)
@placement
@digest
def score(
    directory: Path,
    texts: tuple[str, ...],
    prompt: str,
    data: Path | None,
    signals: tuple[str, ...],
    separator: str | None,
    as_json: bool,
    batch_size: int,
    threads: int | None,
    provider: str | None,
    sha256: str | None,
) -> None:
    """Score each RESPONSE by the engine or checkpoint in DIR: per token, per step, at the end."""
    lines: list[dict[str, Any]] = [{_PROMPT: prompt, "response": text} for text in texts]
    if data is not None:
        lines += _read(data)
    check_separator(separator)
    if not lines:
        raise RequestError("there is nothing to score; give a RESPONSE or --data FILE.jsonl")
    check_digest(directory, sha256)
    engine = load_engine(directory, provider=provider, threads=threads)
    results = scored(
        engine,
        [_text(line) for line in lines],
        signals=signals or None,
        separator=None if separator is None else separator.replace("\\n", "\n"),
        batch_size=batch_size,
    )
    with until_closed(), count_bar(len(lines), "scoring", "text") as count:
        for line, result in zip(lines, results, strict=True):
            count(1)
            if as_json:
                click.echo(json.dumps(line | result.to_json()))
            else:
                click.echo("\n".join(_shown(line, result)))


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of a file, checked."""
    found, problems = [], []
    for number, raw in read_lines(path, "texts", limit=_LIMIT_BYTES, error=RequestError):
        try:
            found.append(_line(raw))
        except OtterError as error:
            problems.append(f"line {number}: {error}")
    if problems:
        more = f"; and {len(problems) - _SHOWN} more lines" if len(problems) > _SHOWN else ""
        raise RequestError(f"{path}: {'; '.join(problems[:_SHOWN])}{more}")
    return found


def _line(raw: bytes) -> dict[str, Any]:
    try:
        line = json.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise RequestError(f"not JSON: {one_line(str(error), LIMIT)}") from None
    if not isinstance(line, dict) or len(set(line) & set(_RESPONSES)) != 1:
        columns = listed(line) if isinstance(line, dict) else quoted(line)
        raise RequestError(f'expected an object with "response" (or "text"), got {columns}')
    _text(line)
    return line


def _text(line: dict[str, Any]) -> tuple[Prompt, Text]:
    """Prompt and response."""
    name = next(n for n in _RESPONSES if n in line)
    if _MESSAGES in line:
        if _PROMPT in line:
            raise RequestError("there are both prompt and messages; give one of them")
        return Chat(line[_MESSAGES]), _checked(name, line[name])
    return _checked(_PROMPT, line.get(_PROMPT, "")), _checked(name, line[name])


def _checked(column: str, value: Any) -> Text:
    is_ids = isinstance(value, list) and all(type(v) is int for v in value)
    if not isinstance(value, str) and not is_ids:
        raise RequestError(f"{column} must be text or token ids, got {quoted(value)}")
    text: Text = value
    return text


def _shown(line: dict[str, Any], result: Score) -> Iterator[str]:
    """A text with its reward in front, and its steps with theirs."""
    response = _text(line)[1]
    text = response if isinstance(response, str) else f"{len(response)} tokens"
    yield f"{_number(result.reward)}  {one_line(text, 200)}"
    if len(result.signals) > 1:
        yield "  " + ", ".join(f"{n} {_number(v[-1])}" for n, v in result.signals.items())
    for step in result.steps or ():
        yield f"  {_number(step.reward)}  {one_line(step.text.strip(), 200)}"


def _number(reward: float | None) -> str:
    return "   none" if reward is None else f"{reward:+7.3f}"
