"""``otter-export label``: a reward model scores texts, for a signal to learn from."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from otter_export.cli.progress import count_bar
from otter_export.json_lines import STDIN
from otter_export.modeling.labelling import Places, Scale, read_texts, scale_path
from otter_export.modeling.labelling import label as write_labels
from otter_export.modeling.teacher import Teacher


@click.command()
@click.option(
    "--teacher",
    type=click.Path(path_type=Path),
    required=True,
    metavar="RM",
    help="A local directory of transformers: a sequence classifier (reward model) or a token "
    "classifier (process-reward model).",
)
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE.jsonl",
    help='Lines of {"response"} or {"prompt", "response"}.',
)
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="LABELLED.jsonl")
@click.option("--every", type=click.IntRange(1), metavar="WORDS", help="Also after every so many.")
@click.option(
    "--separator", metavar="TEXT", help="Also after each step that this ends; \\n is a line feed."
)
@click.option("--label", "name", metavar="NAME", help="Of several labels: whose probability it is.")
@click.option("--chat", is_flag=True, help="Prompt and response by the teacher's chat template.")
@click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True)
def label(
    teacher: Path,
    data: Path,
    out: Path,
    every: int | None,
    separator: str | None,
    name: str | None,
    chat: bool,
    batch_size: int,
) -> None:
    """Score the responses of FILE.jsonl by a teacher, and write LABELLED.jsonl.

    train --objective regression reads it. A run that was interrupted goes on when the same command
    is repeated.
    """
    places = Places(every, None if separator is None else separator.replace("\\n", "\n"))
    scale = run(teacher, data, out, places, name, chat, batch_size)
    click.echo(
        f"{out}: scores of {teacher}, {described(scale)}; {scale_path(out)} has the constants"
    )


def run(
    directory: Path,
    data: Path,
    out: Path,
    places: Places,
    name: str | None = None,
    chat: bool = False,
    batch_size: int = 16,
) -> Scale:
    """Label with a progress bar; says how many texts were cut."""
    if data == STDIN:
        raise click.UsageError("a run that can go on reads its data again; give --data a file")
    loaded: list[Teacher] = []

    def load() -> Teacher:
        loaded.append(Teacher(directory, name, chat))
        return loaded[0]

    weights = sorted(directory.glob("*.safetensors"))
    about = {
        "teacher": directory.name,
        "weights": [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in weights],
        "label": name,
        "chat": chat,
        **dataclasses.asdict(places),
    }
    lines = read_texts(data, places)
    with count_bar(len(lines), "labelling", "text") as progress:
        scale = write_labels(
            load, lines, out, about=about, batch_size=batch_size, progress=progress
        )
    if loaded and loaded[0].cut:
        click.echo(f"warning: {loaded[0].cut} texts lost their beginning: too long", err=True)
    return scale


def described(scale: Scale) -> str:
    """Mean and deviation, in words."""
    return f"mean {scale.mean:.4g}, standard deviation {scale.deviation:.4g}"
