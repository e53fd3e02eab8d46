"""``otter-export evaluate``: ways to decode side by side, on the same prompts."""

from __future__ import annotations

import collections
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from otter_export import __version__
from otter_export.cli.engine_options import placement
from otter_export.cli.finite_range import FiniteRange
from otter_export.cli.progress import step_bar
from otter_export.cli.table import table
from otter_export.errors import RequestError
from otter_export.evaluation.evaluate import evaluate as run
from otter_export.evaluation.evaluation_report import (
    COSTS,
    MARKER,
    cells,
    metric_names,
    write_report,
)
from otter_export.evaluation.judge_command import JudgeCommand
from otter_export.evaluation.ways import make_ways
from otter_export.load import load_engine
from otter_export.output_directory import check_replaceable
from otter_export.quoting import quoted
from otter_export.runtime.engine import Engine
from otter_export.runtime.generation import BATCH_SIZE
from otter_export.runtime.methods import METHODS
from otter_export.runtime.prompt_file import Defaults, read_prompts
from otter_export.runtime.request import Request

_METHODS = ("plain", "args-greedy")


@click.command()
@click.argument(
    "directories",
    metavar="DIR...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
)
@click.option(
    "--prompts",
    "prompt_file",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE.jsonl",
    help='One {"prompt": ...} or {"messages": [...]} a line, with max_tokens, stop, seed and '
    "penalties if it wants; - is standard input.",
)
@click.option("--chat", is_flag=True, help="A prompt is what a user says.")
@click.option("--system", metavar="TEXT", help="The system prompt of every chat.")
@click.option(
    "--method",
    "methods",
    multiple=True,
    default=_METHODS,
    show_default=True,
    help=f"May be repeated; others are compared with the first: {', '.join(METHODS)}.",
)
@click.option(
    "--weights", metavar="N,N,...", help="Of the reward; each is a way.  [default: the method's]"
)
@click.option(
    "--top-k", metavar="N,N,...", help="Candidates; each is a way.  [default: the method's]"
)
@click.option("--signal", help="The signal that is the reward.  [default: the engine's first]")
@click.option("--temperature", type=float, help="Of the methods that sample.")
@click.option("--top-p", type=float, help="Of the methods that sample.")
@click.option("--gate", type=float, metavar="NATS", help="Of the methods that are guided.")
@click.option("--max-tokens", type=int, default=64, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True, help="Of the first prompt.")
@click.option(
    "--judge",
    metavar="COMMAND",
    help='Reads a line {"prompt", "a", "b"} a pair, writes a, b or tie for each; no shell.',
)
@click.option(
    "--judge-seconds",
    type=FiniteRange(0.1, 86400),
    default=600.0,
    show_default=True,
    help="Most that the judge takes for a way.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="REPORT",
    help=f"A directory for report.md, curves.png and {MARKER}.",
)
@click.option("--force", is_flag=True, help="Replace a report that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--batch-size", type=int, default=BATCH_SIZE, show_default=True)
@placement
def evaluate(
    directories: tuple[Path, ...],
    prompt_file: Path,
    chat: bool,
    system: str | None,
    methods: tuple[str, ...],
    weights: str | None,
    top_k: str | None,
    max_tokens: int,
    seed: int,
    judge: str | None,
    judge_seconds: float,
    out: Path | None,
    force: bool,
    as_json: bool,
    batch_size: int,
    threads: int | None,
    provider: str | None,
    **options: Any,
) -> None:
    """Compare ways to decode with the engines or checkpoints in DIR...: what they give and cost.

    Every method with every weight and number of candidates writes a text for each prompt. Reward,
    diversity, coherence, perplexity under the base and a judge's verdict come with 95 % intervals.
    """
    # Everything that the user can get wrong is checked before a model is loaded.
    ways = make_ways(
        methods,
        _numbers("--weights", weights, float),
        _numbers("--top-k", top_k, int),
        {name: value for name, value in options.items() if value is not None},
    )
    defaults = Defaults(request={"max_tokens": max_tokens}, chat=chat, system=system)
    requests = _requests(prompt_file, defaults)
    asked = None if judge is None else JudgeCommand.parse(judge, judge_seconds)
    if out is not None:
        check_replaceable(out, marker=MARKER, force=force)
    engines = _engines(directories, provider, threads)
    with step_bar(len(directories) * len(ways) * len(requests), "text") as done:
        found = run(
            engines, requests, ways, seed=seed, batch_size=batch_size, judge=asked, done=done
        )
    settings = {
        "prompts": len(requests),
        "max_tokens": max_tokens,
        "seed": seed,
        "batch_size": batch_size,
        "judge": judge,
        "version": __version__,
    }
    report = {"settings": settings, **found.to_json()}
    if out is not None:
        write_report(out, report, force=force)
    click.echo(json.dumps(report, indent=1) if as_json else _text(report))
    if out is not None:
        click.echo(f"report: {out}", err=True)


def _numbers(name: str, text: str | None, kind: type[float] | type[int]) -> list[Any]:
    """The numbers of an option; None alone if it was not given."""
    if text is None:
        return [None]
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        what = "integers" if kind is int else "numbers"
        raise RequestError(
            f"{name} must be {what} with commas between them, got {quoted(text)}"
        ) from None


def _requests(path: Path, defaults: Defaults) -> list[Request]:
    """The prompts of a file.

    Raises:
        RequestError: A line says how to choose its tokens.
    """
    requests = read_prompts(path, defaults)
    for number, request in enumerate(requests, 1):
        if request.method != Request("").method:
            raise RequestError(
                f"prompt {number} of {path} has a method or options of its own; leave them out: "
                "all prompts are continued by --method, --weights and --top-k"
            )
    return requests


def _engines(
    directories: Sequence[Path], provider: str | None, threads: int | None
) -> Iterator[tuple[str, Engine]]:
    """Each with its name, loaded when its turn comes."""
    names = collections.Counter(directory.resolve().name for directory in directories)
    for directory in directories:
        name = directory.resolve().name
        engine = load_engine(directory, provider=provider, threads=threads)
        yield (name if names[name] == 1 else str(directory)), engine


def _text(report: Mapping[str, Any]) -> str:
    names = metric_names(report)
    rows = [[arm["engine"], arm["way"], *cells(arm, names)] for arm in report["arms"]]
    lines = [table(rows, ["engine", "way", *names, *COSTS])]
    lines += [f"no {name}: {reason}" for name, reason in report["skipped"].items()]
    return "\n".join(lines)
