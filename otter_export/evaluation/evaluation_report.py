"""A directory with the report of an evaluation: a page to read, pictures, and every number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from otter_export.errors import MissingDependencyError
from otter_export.evaluation.evaluate import METRICS, PERPLEXITY
from otter_export.evaluation.reward_curves import curves, plot_curves
from otter_export.files import write_json
from otter_export.output_directory import output_directory
from otter_export.quoting import one_line

#: By it, a directory is known as one that may be replaced.
MARKER = "evaluation.json"
_PAGE, _CURVES = "report.md", "curves.png"
#: Prompts whose texts are on the page, and characters of each.
_SHOWN, _LENGTH = 3, 400


def write_report(destination: Path, report: Mapping[str, Any], *, force: bool = False) -> None:
    """Write the directory; it appears when it is complete.

    Args:
        destination: The directory.
        report: `Evaluation.to_json`, with ``settings`` beside it.
        force: Replace a report that is there.

    Raises:
        OtterError: It exists, or cannot be written.
    """
    with output_directory(destination, marker=MARKER, force=force) as directory:
        picture = "There is no picture: no engine has a signal that scores."
        if curves(report["arms"]):
            try:
                plot_curves(directory / _CURVES, report["arms"])
                picture = f"![Reward against perplexity and diversity]({_CURVES})"
            except MissingDependencyError as error:
                picture = f"There is no picture: {error}."
        page = "\n".join(_page(report, picture)) + "\n"
        (directory / _PAGE).write_text(page, encoding="utf-8")
        write_json(directory / MARKER, report)


def metric_names(report: Mapping[str, Any]) -> list[str]:
    """Those that some arm has, in their order."""
    arms = report["arms"]
    return [n for n in (*METRICS, PERPLEXITY) if any(n in arm["metrics"] for arm in arms)]


def cells(arm: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """What a table says of an arm: the metrics, the win rate, time, forward passes and space."""
    size = arm["engine_bytes"]
    return [
        *(_mean(arm["metrics"].get(name)) for name in names),
        _mean(arm.get("win_rate")),
        f"{1e3 * arm['seconds_per_token']:.1f}",
        f"{arm['forwards_per_token']:.3f}",
        "" if size is None else f"{size / 1e6:.1f}",
    ]


#: Heads of what `cells` has behind the metrics.
COSTS = ("wins", "ms a token", "forwards a token", "MB")


def _page(report: Mapping[str, Any], picture: str) -> Iterator[str]:
    arms, names = report["arms"], metric_names(report)
    first = f"{arms[0]['engine']}: {arms[0]['way']}"
    given = {name: value for name, value in report["settings"].items() if value is not None}
    settings = ", ".join(f"{name} {value}" for name, value in given.items())
    yield from ("# Evaluation", "", f"{_cell(settings)}.", "")
    yield "Means over prompts; perplexity is over all tokens. Time is that of all prompts together."
    yield from ("", *_table(["engine", "way", *names, *COSTS], [
        [arm["engine"], arm["way"], *cells(arm, names)] for arm in arms
    ]))  # fmt: skip
    yield from ("", picture, "", "## Intervals", "", "95 %, by bootstrap over prompts.", "")
    yield from _table(
        ["engine", "way", *names, "wins"],
        [
            [
                arm["engine"],
                arm["way"],
                *(_interval(arm["metrics"].get(name)) for name in names),
                _interval(arm.get("win_rate")),
            ]
            for arm in arms
        ],
    )
    if len(arms) > 1:
        paired = [name for name in names if name != PERPLEXITY]
        yield from ("", f"## Difference to {_cell(first)}", "", "Prompt by prompt.", "")
        yield from _table(
            ["engine", "way", *paired],
            [
                [
                    arm["engine"],
                    arm["way"],
                    *(_interval(arm["over_first"].get(n), sign="+") for n in paired),
                ]
                for arm in arms[1:]
            ],
        )
    yield from ("", "## What the columns are", "")
    yield from (f"- {name}: {METRICS[name]}" for name in names if name in METRICS)
    yield f"- {PERPLEXITY}: of the text under the engine's own base, behind its prompt"
    if any("win_rate" in arm for arm in arms):
        yield f"- wins: share that the judge prefers to {_cell(first)}, each pair in both orders"
    agreements = [a for arm in arms if (a := arm.get("judge_agreement")) is not None]
    if agreements:
        yield f"- of each way's pairs at least {min(agreements):.0%} had one verdict in both orders"
    yield from (f"- no {name}: {_cell(reason)}" for name, reason in report["skipped"].items())
    yield from ("", "## Texts", "")
    for index, shown in enumerate(arms[0]["texts"][:_SHOWN]):
        yield from (f"    {one_line(shown['prompt'], _LENGTH)}", "")
        for arm in arms:
            text = one_line(arm["texts"][index]["text"], _LENGTH)
            yield from (f"- {_cell(arm['engine'])}: {_cell(arm['way'])}", "", f"      {text}", "")


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    lines = [header, ["---"] * len(header), *rows]
    return ("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    """Names come from directories: nothing of them may end a cell or begin markup."""
    line = one_line(text)
    return "".join(f"\\{c}" if c in "\\|<>[]`*" else c for c in line)


def _mean(interval: Mapping[str, float] | None) -> str:
    return "" if interval is None else f"{interval['mean']:.3f}"


def _interval(interval: Mapping[str, float] | None, sign: str = "") -> str:
    if interval is None:
        return ""
    mean, low, high = (f"{interval[key]:{sign}.3f}" for key in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"
