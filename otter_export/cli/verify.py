"""``otter-export verify DIR``: is an engine what its checkpoint says it is?"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import click

from otter_export.cli.progress import step_bar
from otter_export.cli.table import table
from otter_export.errors import RequestError
from otter_export.evaluation.check import CheckResult
from otter_export.evaluation.prompts import PROMPTS
from otter_export.evaluation.subject import Options
from otter_export.evaluation.verification import CHECKS, Report
from otter_export.evaluation.verification import verify as run_checks
from otter_export.runtime.chat import Chat
from otter_export.runtime.load import PROVIDERS
from otter_export.runtime.prompt_file import Defaults, read_prompts
from otter_export.runtime.request import Request

#: Prompts and tokens of --quick.
_QUICK_PROMPTS = 3
_QUICK_TOKENS = 8


@click.command("verify")
@click.argument("directory", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--checkpoint",
    metavar="CKPT",
    type=click.Path(path_type=Path),
    help="What the engine was built from.  [default: of the recorded name, beside DIR]",
)
@click.option("--prompt", "prompts", multiple=True, metavar="TEXT", help="May be repeated.")
@click.option(
    "--prompts",
    "prompt_file",
    type=click.Path(path_type=Path),
    metavar="FILE.jsonl",
    help='One {"prompt": ...} a line.  [default: eight built-in prompts]',
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1, 1024),
    default=16,
    show_default=True,
    help="Tokens to generate, in the checks that do.",
)
@click.option("--quick", is_flag=True, help="Fewer prompts, and no second graph.")
@click.option("--provider", type=click.Choice(PROVIDERS), help="[default: the engine's own]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify(
    directory: Path,
    checkpoint: Path | None,
    prompts: tuple[str, ...],
    prompt_file: Path | None,
    max_tokens: int,
    quick: bool,
    provider: str | None,
    as_json: bool,
) -> None:
    """Check the engine in DIR against its checkpoint; exit status 1 if a check fails."""
    chosen: list[str | Sequence[int]] = list(prompts)
    if prompt_file is not None:
        chosen += [_plain(request) for request in read_prompts(prompt_file, Defaults())]
    if not chosen:
        chosen += PROMPTS[:_QUICK_PROMPTS] if quick else PROMPTS
    tokens = min(max_tokens, _QUICK_TOKENS) if quick else max_tokens
    options = Options(tuple(chosen), tokens, quick, provider)
    with step_bar(len(CHECKS), "check") as started:
        report = run_checks(directory, checkpoint, options, started)
    try:
        click.echo(json.dumps(report.to_json(), indent=1) if as_json else _text(report))
    finally:
        report.raise_for_failures()  # also where nobody reads the report


def _plain(request: Request) -> str | Sequence[int]:
    if isinstance(request.prompt, Chat):
        raise RequestError("messages are not checked here; give prompts as text or token ids")
    return request.prompt


def _text(report: Report) -> str:
    blocks = [
        f"engine      {report.directory}, {report.precision}\ncheckpoint  {report.checkpoint}",
        table([_row(r) for r in report.results], ("check", "", "measured", "limit", "of", "s")),
        "\n".join(line for result in report.results for line in _details(result)),
    ]
    return "\n\n".join(block for block in blocks if block)


def _row(result: CheckResult) -> tuple[str, ...]:
    status = {True: "ok", False: "FAILED", None: "not run"}[result.passed]
    return (
        result.name,
        status,
        "" if result.measured is None else _number(result.measured),
        "" if result.limit is None else _number(result.limit.value),
        result.what,
        "" if result.passed is None else f"{result.seconds:.1f}",
    )


def _details(result: CheckResult) -> list[str]:
    """What else a check found, a line each."""
    numbers = ", ".join(f"{name} {_number(value)}" for name, value in result.numbers.items())
    lines = [numbers] if numbers else []
    if result.passed is False and result.limit is not None:
        lines.append(f"limit: {result.limit.reason}")
    return [f"{result.name}: {line}" for line in [*lines, *result.notes]]


def _number(value: float) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:.0f}" if value == int(value) else f"{value:.3g}"
